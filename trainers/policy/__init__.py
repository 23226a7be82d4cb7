"""How a policy is made: base, SFT, prompts, search, preference pairs, aligners, the gate."""
