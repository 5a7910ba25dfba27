"""Adapters at a node: those that it serves, and those that clients tune through it."""
