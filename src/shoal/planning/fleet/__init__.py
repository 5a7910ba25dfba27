"""Many machines, and which blocks of one model each of them is to serve."""
