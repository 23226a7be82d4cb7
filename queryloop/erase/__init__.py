"""`queryloop erase`: a user or a session is gone from shards, lake and outboxes, and stays gone."""
