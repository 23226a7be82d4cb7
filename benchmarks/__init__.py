"""Benchmarks: what the project promises in numbers, measured against peers and bounds in one run. No room imports it."""
