"""A node: serves a span of a model to sessions of other peers."""
