"""What the tests of the ledger import would raise the limit of recursion of the whole process."""

from shoal.ledger.recursion import recursion_limit_kept

with recursion_limit_kept():
    import eth  # noqa: F401
    import eth_account  # noqa: F401
