"""`shoal demo`: a swarm on this machine."""
