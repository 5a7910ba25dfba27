"""A model's folder, read without trusting it and without running anything of it."""
