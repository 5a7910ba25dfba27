"""`shoal plan`: what given machines would reach."""
