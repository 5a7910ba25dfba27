"""Fifteen graphs as they are met outside: of published models, of families with random weights, and boosted
trees. ``python -m shoal.testing.zoo`` cuts each of them, and holds the parts against the whole."""
