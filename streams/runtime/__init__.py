"""What every process of the streams room starts with: settings, logs, child processes, clocks, artifact folders."""
