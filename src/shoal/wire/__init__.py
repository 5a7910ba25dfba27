"""The protocol between two peers: messages, framing and the session's state machine. No I/O, no clock."""
