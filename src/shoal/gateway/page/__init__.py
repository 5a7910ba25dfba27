"""The page: its files, and its live data."""
