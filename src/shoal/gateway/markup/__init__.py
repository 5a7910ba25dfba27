"""How models write thoughts and calls, and how they are read from text."""
