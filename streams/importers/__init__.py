"""Foreign logs: files in other formats that become events."""
