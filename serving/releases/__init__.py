"""Releases: which policy, predictor and index go live together, and the slot that swaps them."""
