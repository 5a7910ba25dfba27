"""A block's forward laid open, for proofs of its integer products."""
