"""What a member does to take part: it speaks, listens, keeps connections up and compares notes."""
