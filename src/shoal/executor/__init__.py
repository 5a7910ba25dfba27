"""Runs a span: computing on a thread of its own, and the KV budget that sessions share."""
