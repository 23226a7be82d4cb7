"""All that makes a release: examples, CTR training, SFT, candidate search, preference pairs, alignment, the gate, jobs."""
