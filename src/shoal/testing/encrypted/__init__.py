"""Encrypted inputs for tests, and what they take."""
