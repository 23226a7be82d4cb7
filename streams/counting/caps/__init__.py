"""Caps: how much of what one session or one user saw and asked counts in windows and co-occurrence."""
