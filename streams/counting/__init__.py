"""What counts, one table a file: deduplication, attribution of clicks, windows, co-occurrence, quarantine, retention."""
