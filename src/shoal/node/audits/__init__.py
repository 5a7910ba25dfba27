"""What a node shows of its work to a client that checks it."""
