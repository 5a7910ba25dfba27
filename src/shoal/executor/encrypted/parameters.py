"""The one set of parameters by which rows are encrypted, and whether this machine can do it."""

from __future__ import annotations

from importlib.util import find_spec

from shoal.errors import IncompatibleLibrary
from shoal.wire.inferring import MAX_CIPHERTEXT

PARAMETERS = "ckks-8192-60-60-60"
"""CKKS, a ring of degree 8,192, and primes of 60 bits: 180 bits of modulus. The standard of homomorphic
encryption permits 218 for 128 bits of security (https://homomorphicencryption.org)."""
DEGREE = 8192
PRIME_BITS = (60, 60, 60)
"""Of the last prime no ciphertext has anything; it is there for operations that we do not use."""
SLOTS = DEGREE // 2
"""Rows that one ciphertext holds: of each its number of one column."""
SCALE = 2.0**52
"""By which numbers of at most 1 are multiplied before they are rounded."""
ERROR = 2.0**-36
"""How far a score may be from what it is without encryption, where numbers and weights are at most 1 in all.
Noise makes up some 2e-12."""
ANSWER_CIPHERTEXT = 2 * DEGREE * 8 + 256
"""Bytes of one that has been computed at the most: two polynomials by one prime."""
FULL_CIPHERTEXT = 2 * ANSWER_CIPHERTEXT

if FULL_CIPHERTEXT > MAX_CIPHERTEXT:
    raise AssertionError("a ciphertext does not fit into its message")


def has_ckks() -> bool:
    """Whether what encrypts is installed here."""
    return find_spec("tenseal") is not None


def check_ckks() -> None:
    """Raises IncompatibleLibrary: what encrypts is not installed here."""
    if not has_ckks():
        raise IncompatibleLibrary(
            "encrypted rows need TenSEAL, which is not installed",
            check="install the extra: pip install 'shoal[encrypted]'",
            next_command="shoal version",
        )
