"""Results in files: kept as they are measured, read again, and compared."""
