"""`queryloop replay`: a log file sent through the real parts again."""
