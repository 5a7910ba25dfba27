"""`shoal up` and `shoal serve`: a node's process."""
