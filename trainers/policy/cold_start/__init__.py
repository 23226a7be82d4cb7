"""How a first policy is tested that no clicks have shaped: held-out annotations, relatedness, repetition, the cold-start gate."""
