"""Real node processes that are killed, frozen and brought back by plan, while answers go through them."""
