"""Proofs of integer products: what is true is shown, and nothing else is."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.trust.proofs import field
from shoal.trust.proofs.challenges import Challenges
from shoal.trust.proofs.field import PRIME
from shoal.trust.proofs.sumcheck import proof_bytes, prove_product, verify_product

Ints = NDArray[np.int64]


def product(
    rows: int, cols: int, out: int, seed: int = 0
) -> tuple[NDArray[np.int16], NDArray[np.int8], NDArray[np.int32]]:
    chance = np.random.default_rng(seed)
    x = chance.integers(-32767, 32768, (rows, cols)).astype(np.int16)
    w = chance.integers(-127, 128, (out, cols)).astype(np.int8)
    return x, w, (x.astype(np.int64) @ w.T.astype(np.int64)).astype(np.int32)


@pytest.mark.parametrize(
    ("rows", "cols", "out"), [(32, 48, 80), (32, 64, 64), (1, 1, 1), (7, 65, 3), (1, 129, 2)]
)
def test_a_true_product_is_shown(rows: int, cols: int, out: int) -> None:
    x, w, y = product(rows, cols, out)
    proof = prove_product(Challenges(b"here"), x, w, y)
    assert len(proof) == proof_bytes(cols)
    assert verify_product(Challenges(b"here"), x, w, y, proof)


def test_the_largest_numbers_that_there_are_are_shown() -> None:
    cols = 2**31 // (127 * 32767)
    x = np.full((2, cols), 32767, np.int16)
    x[1] *= -1
    w = np.full((3, cols), 127, np.int8)
    y = (x.astype(np.int64) @ w.T.astype(np.int64)).astype(np.int32)
    assert abs(int(y[0, 0])) > 2**30
    assert verify_product(Challenges(b""), x, w, y, prove_product(Challenges(b""), x, w, y))


@pytest.mark.parametrize("what", ["sum", "sum and prover", "weight", "input", "place", "round", "length"])
def test_whatever_is_changed_nothing_is_shown(what: str) -> None:
    chance = random.Random(what)
    for seed in range(20):
        x, w, y = product(32, 40, 24, seed)
        proof, place = prove_product(Challenges(b"here"), x, w, y), b"here"
        more = np.int8(chance.choice([-3, 1, 2]))
        if what in ("sum", "sum and prover"):
            y[chance.randrange(32), chance.randrange(24)] += more
            if what == "sum and prover":  # who lies of the sums, and proves as well as can be
                proof = prove_product(Challenges(b"here"), x, w, y)
        elif what == "weight":
            other = w.copy()
            other[chance.randrange(24), chance.randrange(40)] ^= 1
            y = (x.astype(np.int64) @ other.T.astype(np.int64)).astype(np.int32)
            proof = prove_product(Challenges(b"here"), x, other, y)
        elif what == "input":
            x[chance.randrange(32), chance.randrange(40)] ^= 1
        elif what == "place":
            place = b"there"  # another session's, or another window's
        elif what == "round":
            at = chance.randrange(len(proof))
            proof = proof[:at] + bytes([proof[at] ^ 1 << chance.randrange(8)]) + proof[at + 1 :]
        else:
            proof = proof[: chance.randrange(len(proof))] if seed % 2 else proof + bytes(16)
        assert not verify_product(Challenges(place), x, w, y, proof)


def test_a_round_has_one_way_to_be_written() -> None:
    x, w, y = (np.zeros(shape, kind) for shape, kind in (((2, 2), "i2"), ((2, 2), "i1"), ((2, 2), "i4")))
    proof = prove_product(Challenges(b""), x, w, y)
    assert proof == bytes(16)
    assert verify_product(Challenges(b""), x, w, y, proof)
    assert not verify_product(Challenges(b""), x, w, y, PRIME.to_bytes(8, "little") + bytes(8))


def test_the_field_is_that_of_integers_modulo_the_prime() -> None:
    chance = random.Random(1)
    few = [0, 1, 2, PRIME - 1, PRIME - 2, 1 << 60, (1 << 31) - 1, 1 << 31]
    many = few + [chance.randrange(PRIME) for _ in range(200)]
    a = np.array([x for x in many for _ in few], np.uint64)
    b = np.array([y for _ in many for y in few], np.uint64)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert field.multiply(a, b).tolist() == [x * y % PRIME for x, y in pairs]
    assert field.add(a, b).tolist() == [(x + y) % PRIME for x, y in pairs]
    assert field.subtract(a, b).tolist() == [(x - y) % PRIME for x, y in pairs]
    assert field.total(a) == sum(a.tolist()) % PRIME
    small = np.array([-(2**31), -1, 0, 1, 2**31 - 1])
    assert field.elements(small).tolist() == [x % PRIME for x in small.tolist()]


def test_rows_are_combined_exactly() -> None:
    chance = np.random.default_rng(2)
    rows = chance.integers(-32768, 32768, (field.AT_ONCE + 70, 5)).astype(np.int16)
    factors = chance.integers(0, PRIME, len(rows), np.uint64)
    expected = [
        sum(f * r for f, r in zip(factors.tolist(), column, strict=True)) % PRIME
        for column in rows.T.tolist()
    ]
    assert field.combine(factors, rows).tolist() == expected
