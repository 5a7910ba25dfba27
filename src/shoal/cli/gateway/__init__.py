"""`shoal gateway`: a gateway's process."""
