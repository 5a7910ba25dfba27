"""A span's weights as arrays, and the packed ones kept on disk."""
