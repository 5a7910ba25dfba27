"""Receipts of an answer: asked for and checked by its client, and computed again by anybody."""
