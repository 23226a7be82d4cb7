"""Foreign logs: files in other formats that become events, through a mapping in SQL that DuckDB runs."""
