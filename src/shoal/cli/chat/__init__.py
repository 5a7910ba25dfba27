"""A conversation at the terminal: what is typed, what is said, what is shown."""
