"""Tokenizers: each runs in a process of its own, and its vocabulary is read here."""
