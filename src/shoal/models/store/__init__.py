"""The models on this machine: what is known of each, and where they come from."""
