"""`queryloop verify`: a log counted anew by other code than the store, and compared."""
