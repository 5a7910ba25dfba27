"""Peers that have shown what they run on: asked, verified, and asked again before that is old."""
