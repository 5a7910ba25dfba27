"""Adapters on the kernels and on modules."""
