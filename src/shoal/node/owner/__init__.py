"""A node and the owner of its machine: when it gives way, and the energy that it takes."""
