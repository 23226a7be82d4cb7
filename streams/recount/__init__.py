"""Recounting a log by other means than the store, and comparing: what `queryloop verify` stands on."""
