"""A proof that ``sums`` are the products of ``inputs`` and ``weights``, without doing the products again.

Thaler, "Time-Optimal Interactive Proofs for Circuit Evaluation" (2013): at a random point the table of sums
must equal the sum over columns k of the inputs' and the weights' extensions there, and sumcheck leads that to
one value of each. The verifier reads inputs, sums and weights once each, and multiplies no matrix.

Whoever proves something false succeeds with a chance of some 50 in 2^61 each time it tries.
"""

from __future__ import annotations

import numpy as np

from shoal.trust.proofs.challenges import Challenges
from shoal.trust.proofs.field import (
    PRIME,
    Elements,
    SignedIntegers,
    add,
    combine,
    elements,
    equality,
    multiply,
    subtract,
    total,
)

ROUND_BYTES = 16
_HALF = pow(2, -1, PRIME)


def bits_for(count: int) -> int:
    """The bits that number ``count`` things."""
    return max(0, (count - 1).bit_length())


def proof_bytes(cols: int) -> int:
    """Bytes of the proof of a product over ``cols`` columns."""
    return ROUND_BYTES * bits_for(cols)


def prove_product(
    challenges: Challenges, inputs: SignedIntegers, weights: SignedIntegers, sums: SignedIntegers
) -> bytes:
    """Prove that ``sums`` are ``inputs @ weights.T``.

    Args:
        challenges: in which inputs and sums have been said.
        inputs: int16 ``[n, cols]``.
        weights: int8 ``[rows, cols]``.
        sums: int32 ``[n, rows]``.
    """
    rounds = bits_for(inputs.shape[1])
    claim, rows, columns = _claim(challenges, sums)
    a, b = _padded(combine(columns, weights), rounds), _padded(combine(rows, inputs), rounds)
    said = list[bytes]()
    for _ in range(rounds):
        half = len(a) // 2
        a0, a1, b0, b1 = a[:half], a[half:], b[:half], b[half:]
        at_0 = total(multiply(a0, b0))
        at_2 = total(multiply(subtract(add(a1, a1), a0), subtract(add(b1, b1), b0)))
        said.append(at_0.to_bytes(8, "little") + at_2.to_bytes(8, "little"))
        challenges.said(said[-1])
        drawn = challenges.draw()
        claim = _at(drawn, at_0, (claim - at_0) % PRIME, at_2)
        a, b = _bound(a0, a1, drawn), _bound(b0, b1, drawn)
    return b"".join(said)


def verify_product(
    challenges: Challenges,
    inputs: SignedIntegers,
    weights: SignedIntegers,
    sums: SignedIntegers,
    proof: bytes | memoryview,
) -> bool:
    """Whether ``proof`` shows that ``sums`` are ``inputs @ weights.T``. As :func:`prove_product`.

    Args:
        weights: the verifier's own.
        proof: of :func:`proof_bytes`; another length shows nothing.
    """
    rounds = bits_for(inputs.shape[1])
    if len(proof) != ROUND_BYTES * rounds:
        return False
    claim, rows, columns = _claim(challenges, sums)
    point = list[int]()
    for number in range(rounds):
        said = bytes(proof[number * ROUND_BYTES : (number + 1) * ROUND_BYTES])
        at_0, at_2 = int.from_bytes(said[:8], "little"), int.from_bytes(said[8:], "little")
        if max(at_0, at_2) >= PRIME:
            return False
        challenges.said(said)
        point.append(challenges.draw())
        claim = _at(point[-1], at_0, (claim - at_0) % PRIME, at_2)
    there = equality(point)[: inputs.shape[1]]
    a = total(multiply(combine(columns, weights), there))
    b = total(multiply(combine(rows, inputs), there))
    return claim == a * b % PRIME


def _claim(challenges: Challenges, sums: SignedIntegers) -> tuple[int, Elements, Elements]:
    """The table of sums at a random point, and what its rows and its columns weigh there."""
    rows = equality(challenges.point(bits_for(sums.shape[0])))
    columns = equality(challenges.point(bits_for(sums.shape[1])))[: sums.shape[1]]
    found = 0
    for factor, row in zip(rows.tolist(), sums, strict=False):
        found += factor * total(multiply(columns, elements(row)))
    return found % PRIME, rows, columns


def _padded(values: Elements, bits: int) -> Elements:
    return np.concatenate([values, np.zeros((1 << bits) - len(values), np.uint64)])


def _bound(low: Elements, high: Elements, drawn: int) -> Elements:
    """The extension with its highest variable at ``drawn``."""
    return add(low, multiply(subtract(high, low), np.uint64(drawn)))


def _at(x: int, at_0: int, at_1: int, at_2: int) -> int:
    """The polynomial of degree 2 with these values at 0, 1 and 2, at ``x``."""
    by_0 = (x - 1) * (x - 2) % PRIME * _HALF
    by_1 = x * (2 - x)
    by_2 = x * (x - 1) % PRIME * _HALF
    return (at_0 * by_0 + at_1 * by_1 + at_2 * by_2) % PRIME
