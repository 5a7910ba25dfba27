"""Answers for whoever pays, without an API key: ``402 Payment Required`` as x402's clients understand it."""
