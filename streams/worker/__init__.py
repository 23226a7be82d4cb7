"""The worker process: a Faust app that fetches records and counts them exactly once."""
