"""Cumulative vouchers: what a payer signs, and what both sides keep of it. Pure, but for the book on disk."""
