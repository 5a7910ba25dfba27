"""Models in GGUF files: read without trusting them, and turned into folders."""
