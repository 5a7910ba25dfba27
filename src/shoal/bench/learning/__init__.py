"""A small model that four processes train from scratch, by several ways to send what they learn."""
