"""`shoal verify`: what can be known of an answer that others have computed."""
