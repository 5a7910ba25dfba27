"""What is on the chain: three small contracts in Vyper, and what the compiler made of them."""
