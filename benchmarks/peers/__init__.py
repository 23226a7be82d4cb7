"""Programs that run in the peers' own environment (`benchmarks.peer_venv`): they import no file of this project."""
