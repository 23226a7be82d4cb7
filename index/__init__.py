"""Which queries follow a query and which are similar: co-occurrence dictionary, query encoder, nearest neighbours, retrieval."""
