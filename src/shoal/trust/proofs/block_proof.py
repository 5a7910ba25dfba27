"""What a hop shows of one block and one window, and how it is checked against what the hop has committed to.

A block's forward is laid open: the rows that it was given, the keys and values of the positions before, and
the sums of its four integer products. Whoever checks it computes all that lies between, and of the products
checks a proof (:mod:`shoal.trust.proofs.sumcheck`). The proof hangs on the hop's receipt of that window: it
is of one session, one question, one model and one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from shoal.errors import RemoteProtocolError
from shoal.trust.proofs.challenges import Challenges
from shoal.trust.proofs.field import SignedIntegers
from shoal.trust.proofs.sumcheck import proof_bytes, prove_product, verify_product
from shoal.trust.rows import HASH, root

PRODUCTS = ("qkv", "out", "gate_up", "down")
"""A block's products, as the kernels name them."""


@dataclass(frozen=True, slots=True)
class BlockStatement:
    """What is proved: that the blocks' rows are these, of the window of a receipt."""

    receipt: bytes
    """The hash of the receipt: of a session, a question, a hop, a model, its numerics and a window."""
    block: int
    came: bytes
    """The Merkle root over the rows that the block was given, in float32."""
    went: bytes
    """The same over those that it gave."""

    @property
    def encoded(self) -> bytes:
        return self.receipt + self.block.to_bytes(4, "little") + self.came + self.went


@dataclass(frozen=True, slots=True)
class ProofSizes:
    """Of what a proof consists."""

    rows: int
    width: int
    products: tuple[tuple[int, int], ...]
    """What goes out and what comes in of each, in the order of ``PRODUCTS``."""
    past: int
    """Bytes of keys and values of the positions before."""

    @property
    def bytes(self) -> int:
        """Of the whole proof."""
        return 4 * self.rows * (self.width + sum(out for out, _ in self.products)) + self.past + self.argued

    @property
    def argued(self) -> int:
        """Bytes of the proof of the products alone."""
        return sum(proof_bytes(cols) for _, cols in self.products)


@dataclass(frozen=True, slots=True)
class BlockProof:
    """What a hop shows."""

    came: NDArray[np.float32]
    """``[rows, width]``"""
    past: bytes
    sums: tuple[SignedIntegers, ...]
    """int32 ``[rows, out]``, in the order of ``PRODUCTS``."""
    argument: bytes
    """That the sums are those of the weights: one proof after another."""

    @property
    def encoded(self) -> bytes:
        """As it travels."""
        return b"".join(
            [self.argument, self.came.tobytes(), self.past, *(one.tobytes() for one in self.sums)]
        )


def window_root(rows: NDArray[np.float32]) -> bytes:
    """The Merkle root over up to 32 rows in float32, each by itself."""
    return root(b"".join(blake3(row.tobytes()).digest() for row in rows))


def read_roots(payload: bytes, blocks: int) -> list[bytes]:
    """What a hop commits to: a root for each boundary between its blocks.

    Raises:
        RemoteProtocolError: they are of another number.
    """
    if len(payload) != HASH * (blocks - 1):
        raise RemoteProtocolError(f"{len(payload)} bytes of roots where {blocks - 1} boundaries have some")
    return [payload[at : at + HASH] for at in range(0, len(payload), HASH)]


def read_proof(payload: bytes, sizes: ProofSizes) -> BlockProof:
    """What came, in its parts.

    Raises:
        RemoteProtocolError: it has another size than such a proof, or rows that are no numbers.
    """
    if len(payload) != sizes.bytes:
        raise RemoteProtocolError(f"a proof of {len(payload)} bytes where one has {sizes.bytes}")
    at = sizes.argued
    came = np.frombuffer(payload, np.float32, sizes.rows * sizes.width, at).reshape(sizes.rows, -1)
    if not np.isfinite(came).all():
        raise RemoteProtocolError("a proof whose rows hold NaN or infinity")
    past_at = at + came.nbytes
    at = past_at + sizes.past
    sums = list[SignedIntegers]()
    for out, _ in sizes.products:
        sums.append(np.frombuffer(payload, np.int32, sizes.rows * out, at).reshape(sizes.rows, out))
        at += sums[-1].nbytes
    return BlockProof(came, payload[past_at : past_at + sizes.past], tuple(sums), payload[: sizes.argued])


def prove_block(
    statement: BlockStatement,
    came: NDArray[np.float32],
    past: bytes,
    inputs: Sequence[SignedIntegers],
    sums: Sequence[SignedIntegers],
    weights: Sequence[SignedIntegers],
) -> BlockProof:
    """Prove a block's forward of a window.

    Args:
        inputs: int16 ``[rows, in]``, what each product was given as integers.
        weights: int8 ``[out, in]``.
    """
    challenges = _begun(statement, came, past, inputs, sums)
    parts = [prove_product(challenges, x, w, y) for x, w, y in zip(inputs, weights, sums, strict=True)]
    return BlockProof(came, past, tuple(sums), b"".join(parts))


def first_unproved(
    statement: BlockStatement,
    proof: BlockProof,
    inputs: Sequence[SignedIntegers],
    weights: Sequence[SignedIntegers],
) -> str | None:
    """The first product that a proof does not show to be that of the weights; ``None``: it shows all.

    Args:
        inputs: what the verifier finds that each product was given, from the rows, the past and the sums.
        weights: the verifier's own.
    """
    challenges, at = _begun(statement, proof.came, proof.past, inputs, proof.sums), 0
    for name, x, w, y in zip(PRODUCTS, inputs, weights, proof.sums, strict=True):
        size = proof_bytes(x.shape[1])
        if not verify_product(challenges, x, w, y, proof.argument[at : at + size]):
            return name
        at += size
    return None


def _begun(
    statement: BlockStatement,
    came: NDArray[np.float32],
    past: bytes,
    inputs: Sequence[SignedIntegers],
    sums: Sequence[SignedIntegers],
) -> Challenges:
    """All that is said before any number is drawn."""
    challenges = Challenges(statement.encoded)
    for said in (came.tobytes(), past, *(x.tobytes() for x in inputs), *(y.tobytes() for y in sums)):
        challenges.said(said)
    return challenges
