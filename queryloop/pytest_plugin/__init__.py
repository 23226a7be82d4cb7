"""What is behind the pytest fixture `queryloop`: a broker for the run, for each test a worker, a clock and its counts."""
