"""Looking at a swarm: `shoal status`, `peers`, `ping` and `route`."""
