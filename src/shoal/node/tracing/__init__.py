"""What hops do for answers that somebody traces."""
