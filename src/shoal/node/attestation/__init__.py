"""A node that shows what it runs on: quotes of its hardware, what they are verified with, who is answered."""
