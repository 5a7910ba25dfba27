"""Many samples of many prompts, into a file."""
