"""Benchmarks: the project's goals in numbers, measured beside peers and bounds in the same run. No room imports it."""
