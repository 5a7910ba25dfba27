"""Proofs that a block's integer products are those of its weights: sound, not zero-knowledge. Pure."""
