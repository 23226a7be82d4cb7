"""`queryloop torture`: real processes are killed while a difficult log flows, and then every count is compared."""
