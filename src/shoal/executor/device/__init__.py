"""Accelerators: which are here, what room they have, and spans of Llama's shape computed there by torch."""
