"""Weights that were quantised when they were published, read where they lie."""
