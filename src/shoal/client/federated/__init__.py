"""Federated rounds over the network: members of a run, whom they hear, and what each of them does."""
