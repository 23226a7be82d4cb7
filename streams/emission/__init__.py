"""Behind the emitter: from lines to acknowledged records, through memory or the outbox on disk."""
