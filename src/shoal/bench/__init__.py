"""Measurements of this machine, of Shoal on it, and of its peers beside it."""
