"""The producer: takes events from any thread, keeps them in memory or an outbox on disk, delivers them at least once."""
