"""The OpenAI-compatible gateway: HTTP in, a swarm's answers out."""
