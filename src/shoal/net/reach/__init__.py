"""Being reachable behind routers: what others see of us, relays, and calls that are made through them."""
