"""What given machines would reach with a model, and which blocks to put where."""
