"""Kafka to run on, the topics on it, and the clients that talk to it."""
