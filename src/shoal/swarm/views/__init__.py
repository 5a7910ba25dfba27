"""What of a large swarm a member keeps, hears and says; a small swarm is kept whole."""
