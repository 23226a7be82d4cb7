"""The policy as it is run: tasks and prompts, the text form of lists, generation engines."""
