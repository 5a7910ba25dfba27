"""Fingerprints of rows by which two computations are compared whose bits are not the same. Pure.

As in TOPLOC (Ong et al., "TOPLOC: A Locality Sensitive Hashing Scheme for Trustless Verifiable Inference",
arXiv 2501.16007): of a window of rows, the 128 elements that are largest without their sign, each with its
place, are points of a polynomial over a prime field, whose coefficients are the fingerprint. Whoever has
computed nearly the same rows evaluates it at the places of their own largest elements: what comes out is like
what they have; where the places or the rows are others, it is any number.

A place is taken modulo the largest number below the prime by which all 128 stay apart; values are rounded to
bfloat16. What is compared are exponents, and where these agree, mantissas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

PRIME = 65497
"""Above the bits of every finite bfloat16, and below 2 to the 16."""
POINTS = 128
"""Of a window; fewer where it has fewer elements."""
MANTISSA_BITS = 7
INT = np.int64

FieldNumbers: TypeAlias = npt.NDArray[np.int64]
WindowRows: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of one window: 2 bytes for each number, so 258 in all."""

    modulus: int
    """By which places are taken."""
    coefficients: tuple[int, ...]
    """Of the polynomial, from the constant on."""


@dataclass(frozen=True, slots=True)
class FingerprintDistance:
    """How far rows are from a fingerprint."""

    points: int
    exponents: int
    """Of the points, those whose sign or exponent is another."""
    mean: float
    """Between mantissas of all others, of 128 steps; 128 where there are none."""
    median: float

    def worse(self, other: FingerprintDistance) -> FingerprintDistance:
        """In each number the larger of two."""
        return FingerprintDistance(
            max(self.points, other.points),
            max(self.exponents, other.exponents),
            max(self.mean, other.mean),
            max(self.median, other.median),
        )


def take_fingerprint(rows: WindowRows) -> Fingerprint:
    """Of rows ``[rows, width]``, all finite."""
    places, values = _largest(rows)
    modulus = _modulus(places)
    return Fingerprint(modulus, tuple(int(c) for c in _interpolated(places % modulus, values)))


def fingerprint_distance(made: Fingerprint, rows: WindowRows) -> FingerprintDistance:
    """How far somebody else's fingerprint is from what these rows, ``[rows, width]``, give."""
    places, values = _largest(rows)
    theirs = _evaluated(np.array(made.coefficients, INT), places % made.modulus)
    alike = values >> MANTISSA_BITS == theirs >> MANTISSA_BITS
    steps = 1 << MANTISSA_BITS
    apart = np.abs(values % steps - theirs % steps)[alike]
    mean, median = (float(apart.mean()), float(np.median(apart))) if len(apart) else (float(steps),) * 2
    return FingerprintDistance(len(places), int((~alike).sum()), mean, median)


def _largest(rows: WindowRows) -> tuple[FieldNumbers, FieldNumbers]:
    """The places of the largest elements and their bits as bfloat16, ``[points]`` each."""
    bits = np.ascontiguousarray(rows, np.float32).reshape(-1).view(np.uint32).astype(INT)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    points = min(POINTS, len(rounded))
    # Without their sign, bits are in the order of what they stand for. Of equal ones the first are taken.
    places = np.argsort(-(rounded & 0x7FFF), kind="stable")[:points]
    return places.astype(INT), rounded[places]


def _modulus(places: FieldNumbers) -> int:
    return next(m for m in range(PRIME, 0, -1) if len(np.unique(places % m)) == len(places))


def _interpolated(at: FieldNumbers, values: FieldNumbers) -> FieldNumbers:
    """The polynomial of least degree through these points, by Newton's divided differences."""
    newton, inverses = values % PRIME, _inverses()
    for order in range(1, len(at)):
        steps = inverses[(at[order:] - at[:-order]) % PRIME]
        newton[order:] = (newton[order:] - newton[order - 1 : -1]) * steps % PRIME
    found = np.zeros(len(at), INT)
    for degree in range(len(at) - 1, -1, -1):
        shifted = np.concatenate(([0], found[:-1]))
        found = (shifted - at[degree] * found) % PRIME
        found[0] = (found[0] + newton[degree]) % PRIME
    return found


def _evaluated(coefficients: FieldNumbers, at: FieldNumbers) -> FieldNumbers:
    """Values of a polynomial, by Horner's rule."""
    found = np.zeros(len(at), INT)
    for coefficient in coefficients[::-1]:
        found = (found * at + coefficient) % PRIME
    return found


@cache
def _inverses() -> FieldNumbers:
    """Of each number below the prime but 0, by Fermat's theorem."""
    base, found = np.arange(PRIME, dtype=INT), np.ones(PRIME, INT)
    for bit in range(PRIME.bit_length()):
        if PRIME - 2 >> bit & 1:
            found = found * base % PRIME
        base = base * base % PRIME
    return found
