"""The HTTP app: recommend a list, take events, say how things are."""
