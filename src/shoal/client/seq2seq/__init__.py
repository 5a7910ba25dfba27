"""Models with an encoder and a decoder, as a client uses them: what is read or heard, and what is written."""
