"""Models with an encoder and a decoder, built in spans of either side."""
