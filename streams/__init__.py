"""What flows: events, topics, brokers, the store, the lake, artifacts."""
