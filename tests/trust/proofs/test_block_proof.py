"""Proofs as they travel: read within their sizes, and of one place alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from shoal.errors import RemoteProtocolError
from shoal.trust.answer import HopReceipts, KeptAnswer, KeptWindow
from shoal.trust.proofs.block_proof import (
    PRODUCTS,
    BlockProof,
    BlockStatement,
    ProofSizes,
    first_unproved,
    prove_block,
    read_proof,
    read_roots,
)
from shoal.trust.proofs.draw import MAX_PAST, draw_target, provable_windows

ROWS, WIDTH = 32, 16
SHAPES = ((24, WIDTH), (WIDTH, 8), (40, WIDTH), (WIDTH, 20))
SIZES = ProofSizes(ROWS, WIDTH, SHAPES, 64)
HERE = BlockStatement(b"r" * 32, 3, b"c" * 32, b"w" * 32)


def parts() -> tuple[BlockProof, list[np.ndarray], list[np.ndarray]]:
    chance = np.random.default_rng(0)
    inputs = [chance.integers(-99, 99, (ROWS, cols)).astype(np.int16) for _, cols in SHAPES]
    weights = [chance.integers(-127, 128, shape).astype(np.int8) for shape in SHAPES]
    sums = [(x.astype(np.int64) @ w.T).astype(np.int32) for x, w in zip(inputs, weights, strict=True)]
    came = chance.standard_normal((ROWS, WIDTH), np.float32)
    return prove_block(HERE, came, bytes(range(64)), inputs, sums, weights), inputs, weights


def test_a_proof_is_read_as_it_was_written_and_holds() -> None:
    proof, inputs, weights = parts()
    payload = proof.encoded
    assert len(payload) == SIZES.bytes
    read = read_proof(payload, SIZES)
    assert (read.past, read.argument) == (proof.past, proof.argument)
    assert np.array_equal(read.came, proof.came)
    assert first_unproved(HERE, read, inputs, weights) is None


@pytest.mark.parametrize(
    "elsewhere",
    [{"receipt": b"s" * 32}, {"block": 4}, {"came": b"d" * 32}, {"went": b"x" * 32}],
    ids=lambda change: next(iter(change)),
)
def test_a_proof_of_another_session_block_or_boundary_shows_nothing(elsewhere: dict) -> None:
    proof, inputs, weights = parts()
    assert first_unproved(replace(HERE, **elsewhere), proof, inputs, weights) == PRODUCTS[0]


def test_the_product_that_does_not_hold_is_named() -> None:
    for number, name in enumerate(PRODUCTS):
        proof, inputs, weights = parts()
        weights[number][0, 0] ^= 1
        assert first_unproved(HERE, proof, inputs, weights) == name


def test_what_is_no_proof_is_refused_by_its_size_and_its_numbers() -> None:
    payload = parts()[0].encoded
    for wrong in (b"", payload[:-1], payload + b"\0", payload * 2):
        with pytest.raises(RemoteProtocolError, match="bytes where one has"):
            read_proof(wrong, SIZES)
    at = SIZES.argued
    for bad in (np.nan, np.inf):
        with pytest.raises(RemoteProtocolError, match="NaN"):
            read_proof(payload[:at] + np.float32(bad).tobytes() + payload[at + 4 :], SIZES)
    assert read_roots(bytes(64), 3) == [bytes(32)] * 2
    assert read_roots(b"", 1) == []
    for payload in (b"", bytes(63), bytes(96)):
        with pytest.raises(RemoteProtocolError, match="2 boundaries"):
            read_roots(payload, 3)


def answer(tokens: int) -> KeptAnswer:
    windows = (KeptWindow(0, bytes(32), bytes(32), bytes(64)),) * -(-tokens // 32)
    hops = tuple(HopReceipts(str(a), a, b, bytes(16), windows) for a, b in ((0, 2), (2, 5)))
    return KeptAnswer(
        model="m",
        digest="sha256:" + "0" * 64,
        n_blocks=5,
        width=WIDTH,
        numerics="n1/int8/auto/rows",
        codec="float32",
        session=bytes(16),
        nonce=bytes(16),
        token_ids=(1,) * tokens,
        prompt_tokens=1,
        tokens=tokens,
        hops=hops,
    )


def test_every_block_and_every_window_is_drawn_as_often() -> None:
    kept, seen = answer(70), Counter[tuple[int, int, int]]()
    steps = [n / 300 for n in range(300)]
    for one in steps:
        for other in (0.0, 0.34, 0.99):
            draws = iter([one, other])
            target = draw_target(kept, {0: 3, 1: 3}, lambda draws=draws: next(draws))
            assert target is not None
            assert target.block in range(target.span.start, target.span.end)
            assert target.rows == (6 if target.window == 2 else 32)
            seen[target.hop, target.block, target.window] += 1
    assert len(seen) == 15
    assert set(seen.values()) == {60}
    assert draw_target(kept, {}, lambda: 0.0) is None


def test_no_later_window_is_drawn_than_its_proof_can_travel() -> None:
    reach = provable_windows({0: 10_000, 1: 10_000, 2: 3}, [1e12, 1e6, 1e12], 4 * 1024 * 32)
    assert reach[0] == 1 + MAX_PAST // (4 * 1024 * 32)
    assert 1 < reach[1] < reach[0]
    assert reach[2] == 3
    assert provable_windows({0: 5}, [1.0], 4 * 1024 * 32) == {0: 1}
