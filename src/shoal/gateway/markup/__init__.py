"""How models write reasoning and calls, and how they are read from text."""
