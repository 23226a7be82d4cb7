"""`queryloop quarantine`: the events that could not be counted are listed, shown, dropped, and repaired."""
