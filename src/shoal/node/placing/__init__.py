"""Which span a node serves: chosen when it joins, and again when another place has become better."""
