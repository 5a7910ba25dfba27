"""x402's contracts, written anew after their interface, at the addresses that x402's clients sign for."""
