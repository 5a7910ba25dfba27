"""Learning together: the rules of it. Pure but for what the docstrings name."""
