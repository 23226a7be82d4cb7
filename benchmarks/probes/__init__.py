"""What is measured beside a benchmark: what processes use, how long the disk and readers wait."""
