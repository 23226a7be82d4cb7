"""The store: one partition's counts in one DuckDB file, the shards that a worker holds, and their export to the lake."""
