"""Which queries follow which, and which are near: co-occurrence dictionary, query encoder, nearest neighbours, retrieval."""
