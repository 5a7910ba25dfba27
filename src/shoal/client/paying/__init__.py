"""What a client owes its hops: acknowledged without a chain, or paid by vouchers."""
