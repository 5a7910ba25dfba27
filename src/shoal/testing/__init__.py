"""Test doubles and small checkpoints. The product never imports them."""
