"""Payments as x402's clients make them: its scheme ``batch-settlement``, at its own contract.

https://github.com/x402-foundation/x402. Its clients sign for that contract alone, whose address is a constant
of theirs, and pay in by a token's authorization (ERC-3009): our own Escrow can take neither. What a voucher
says, and how its hash is made, is the same at both (:mod:`shoal.ledger.vouchers.voucher`).
"""
