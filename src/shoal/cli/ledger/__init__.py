"""What is owed and settled: `shoal wallet`."""
