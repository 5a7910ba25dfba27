"""Who is in the swarm and what they serve: announcements, their directory, membership."""
