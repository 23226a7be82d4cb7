"""The formats a log may come in, and how each becomes event lines: compressed NDJSON, Parquet, foreign tables by a mapping."""
