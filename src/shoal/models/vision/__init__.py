"""What looks at pictures: from a picture to rows that stand where a prompt shows it."""
