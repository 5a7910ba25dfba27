"""`shoal doctor`: checks of this machine's setup."""
