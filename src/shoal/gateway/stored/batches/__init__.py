"""Batches: many requests in one file, answered behind everybody who waits."""
