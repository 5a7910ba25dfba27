"""`shoal federate`: tune an adapter together with others, whose data stay where they are."""
