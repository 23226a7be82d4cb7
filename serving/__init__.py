"""All that runs a release: prompts and lists, engines, the predictor, the slot that swaps releases, and the HTTP app."""
