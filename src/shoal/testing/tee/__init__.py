"""Hardware that there is not: roots, chains and quotes of our own, and what gives them to a node."""
