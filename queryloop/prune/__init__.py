"""`queryloop prune`: artifacts and releases that nobody needs any more are listed, or removed."""
