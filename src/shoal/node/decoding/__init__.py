"""Decode steps that take a shorter way than the others."""
