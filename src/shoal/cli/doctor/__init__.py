"""`shoal doctor`, checks of this machine's setup, and `shoal privacy`, an attack on a model that is on it."""
