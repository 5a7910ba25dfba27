"""Commands that take recordings."""
