"""Adapters: small matrices beside a model's linear layers that make another model of it."""
