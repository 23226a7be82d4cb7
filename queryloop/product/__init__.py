"""A simulated product: a world with hidden tastes, its users, and the calls that a real product would make over HTTP."""
