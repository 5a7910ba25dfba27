"""`shoal rollouts`."""
