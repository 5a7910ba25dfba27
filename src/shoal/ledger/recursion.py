"""The libraries of chains are kept from a setting of the whole process."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def recursion_limit_kept() -> Generator[None]:
    """Import in the block what raises Python's limit of recursion to 100,000, as py_ecc does for eth-account.

    Under such a limit JSON that is nested deeply is no RecursionError: it overflows the stack, and ends the
    process.
    """
    limit = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
