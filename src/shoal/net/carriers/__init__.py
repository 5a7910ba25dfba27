"""The ways to carry a channel to a peer, and who is tried in which order."""
