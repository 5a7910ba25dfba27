"""The client: opens a session over a route, keeps the ends, generates."""
