"""Swarms of ten thousand nodes: the product's decisions, discrete events, no sockets and no tasks."""
