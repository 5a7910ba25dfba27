"""Checks what a hop shows of one block against its commitments, its receipt and this machine's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.errors import StepFailed
from shoal.executor.arrays import Array, Floats
from shoal.executor.codecs import encode, split_rows
from shoal.executor.proofs.tracer import BlockTracer
from shoal.trust.proofs.block_proof import (
    BlockProof,
    BlockStatement,
    ProofSizes,
    first_unproved,
    read_proof,
    window_root,
)
from shoal.trust.proofs.draw import ProofTarget
from shoal.trust.receipt import Receipt
from shoal.trust.rows import row_log
from shoal.types import Codec


@dataclass(frozen=True, slots=True)
class BlockClaim:
    """What a hop has said of a window before it heard which block it was to prove."""

    target: ProofTarget
    receipt: Receipt
    given: Floats
    """The rows that the hop was given, ``[rows, width]``."""
    roots: Sequence[bytes]
    """Over what each of its blocks gave, but the last."""

    def check(self, payload: bytes, tracer: BlockTracer) -> str | None:
        """What of a proof does not hold, in a clause; ``None``: all of it does.

        Args:
            tracer: of this machine's own weights of the block alone.

        Raises:
            RemoteProtocolError: it is no proof of this block at all.
        """
        target = self.target
        width = self.given.shape[1]
        products = tuple(tracer.products(target.block))
        sizes = ProofSizes(target.rows, width, products, tracer.past_bytes(target.first))
        proof = read_proof(payload, sizes)
        place = target.block - target.span.start
        came = self.roots[place - 1] if place else window_root(self.given)
        if window_root(proof.came) != came:
            return "the rows that it shows are not those that it had committed to"
        traced = tracer.replay(target.block, target.first, proof.came, proof.past, proof.sums)
        if not np.isfinite(traced.went).all():
            return "what follows from what it shows is NaN or infinity"
        went = window_root(traced.went)
        if place < len(self.roots):
            if went != self.roots[place]:
                return "what follows from what it shows are not the rows that it had committed to"
        elif not self._gives(traced.went):
            return "what follows from what it shows are not the rows that it has signed"
        statement = BlockStatement(self.receipt.hash, target.block, came, went)
        return _unproved(statement, proof, traced.inputs, tracer.weights(target.block))

    def _gives(self, went: Floats) -> bool:
        """Whether these are the rows that the hop has signed that it gave."""
        codec: Codec = self.receipt.work.codec
        try:
            rows = split_rows(encode(went, codec), codec, len(went), went.shape[1])
        except StepFailed:  # too large for the codec: nobody can have sent them
            return False
        return row_log(rows).window(0, self.receipt.sent)[1] == self.receipt.went


def _unproved(
    statement: BlockStatement, proof: BlockProof, inputs: Sequence[Array], weights: Sequence[Array]
) -> str | None:
    name = first_unproved(statement, proof, inputs, weights)
    return None if name is None else f"the sums of its product {name} are not those of the model's weights"
