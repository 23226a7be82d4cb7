"""Counting, one file for each table: deduplication, attribution of clicks, windows, co-occurrence, quarantine, retention."""
