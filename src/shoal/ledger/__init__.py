"""What is owed between peers, and how it is settled.

``vouchers/`` is what a payer signs and a payee believes, without a chain at hand; ``contracts/`` is what
stands on an EVM chain. Signing needs the extra
``shoal[ledger]``, which is imported when it is first used.
"""
