"""Networks between homes on one machine: namespaces, NATs, distances, and faults of them. Needs root."""
