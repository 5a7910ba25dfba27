"""Recordings over HTTP: what is said in them."""
