"""What hops sign of their work, and how anybody checks it: pure rules, no I/O, no clock."""
