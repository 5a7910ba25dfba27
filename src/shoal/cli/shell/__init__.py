"""What the shell asks of us: completion and help, answered at once."""
