"""Segments of a graph, computed by ONNX Runtime in a process of their own."""
