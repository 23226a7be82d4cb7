"""The training jobs, their ledger and their timetable."""
