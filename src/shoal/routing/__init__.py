"""Decisions as pure functions: which route a session takes, which span a node serves."""
