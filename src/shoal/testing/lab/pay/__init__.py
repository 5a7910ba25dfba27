"""Answers that are paid for, through processes that are killed: how fast they are, and who loses what."""
