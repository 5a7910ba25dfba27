"""`shoal infer`, and `shoal serve` of a graph."""
