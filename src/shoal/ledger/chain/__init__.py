"""The only user of a chain's node: which contracts are used, and transactions until they stand."""
