"""The HTTP app: lists for products, their events, releases, health and metrics."""
