"""`shoal launch`: other programs, set up for this machine's gateway."""
