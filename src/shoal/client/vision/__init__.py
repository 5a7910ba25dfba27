"""Pictures in prompts: read, looked at on this machine, and put in the place of their tokens."""
