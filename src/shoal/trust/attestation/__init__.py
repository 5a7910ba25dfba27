"""What hardware signs of the machine that a peer runs on: read, verified, held against an operator's list."""
