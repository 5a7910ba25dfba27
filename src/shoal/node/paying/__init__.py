"""What a node goes by when it serves others: credits without a chain, or a price and vouchers."""
