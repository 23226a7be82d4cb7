"""What every process starts with: settings, logs, child processes, clocks, files written whole, artifact folders."""
