"""Sums of updates of which nobody sees one (Bonawitz et al., "Practical Secure Aggregation", 2017)."""
