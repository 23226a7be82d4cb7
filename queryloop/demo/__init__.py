"""`queryloop demo`: the whole loop against a simulated product, and the report of what it was worth."""
