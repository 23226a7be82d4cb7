"""How a policy is made: base model, SFT, prompts, candidate search, preference pairs, aligners, the gate."""
