"""Deep networks of any kind, as ONNX graphs: imported once, cut into segments, and named by a digest."""
