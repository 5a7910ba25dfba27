"""Federated rounds: what members tell each other, and what follows from it. No I/O, no clock, no torch."""
