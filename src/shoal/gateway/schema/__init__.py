"""The bodies of the API: what OpenAI's clients send, checked field by field."""
