"""Processes of one machine: started in order, watched, started again, stopped."""
