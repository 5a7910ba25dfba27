"""`shoal tune`."""
