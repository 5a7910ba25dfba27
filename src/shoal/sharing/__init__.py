"""Weights from peers: small pieces of a model, each checked by itself, from whoever has them."""
