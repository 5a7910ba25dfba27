"""Adapters at a client: those that are served, found by their names, and one that is tuned here."""
