"""How a model's last hidden states become the embedding of a text."""
