"""What a proof of one block takes: a hop to make it, a client to check it, and the link between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, TypeVar

import numpy as np

from shoal.bench.models import measured_model
from shoal.client.receipts.replay import load_blocks
from shoal.config import Settings
from shoal.errors import NotAllowed, ShoalError
from shoal.executor.arrays import Floats
from shoal.executor.proofs.tracer import BlockTracer
from shoal.executor.runner import KvState, Runner, SessionRows
from shoal.models.store.local_model import LocalModel
from shoal.progress import Progress
from shoal.trust.proofs.block_proof import (
    BlockProof,
    BlockStatement,
    ProofSizes,
    first_unproved,
    prove_block,
    read_proof,
    window_root,
)
from shoal.trust.proofs.draw import PROVABLE_FORMATS
from shoal.trust.rows import WINDOW
from shoal.types import Format, Numerics, Span

_Made = TypeVar("_Made")
_RECEIPT = bytes(32)
"""In the place of a receipt's hash: whose it is does not matter to the clock."""


def measure_proof(settings: Settings, window: int, rounds: int, progress: Progress) -> dict[str, Any]:
    """Measure, and return the numbers as ``--json`` shows them: seconds are medians.

    Args:
        window: of 32 positions, counted from 0; what is before it is part of the proof.

    Raises:
        NotAllowed: there are no proofs of the model in this format.
        ShoalError: the model cannot be had.
    """
    settings, model = measured_model(settings, progress)
    format: Format = "int8" if settings.format == "auto" else settings.format
    if format not in PROVABLE_FORMATS:
        raise NotAllowed(
            f"proofs are of int8 and w8a8, and not of {format}",
            check="measure one of these formats",
            next_command="shoal bench proof --format int8",
        )
    block, first = model.shape.n_blocks // 2, window * WINDOW
    progress(f"loading block {block} of {model.name} in {format}", 0, 0)
    hop, client = (_loaded(model, block, format, settings, first + WINDOW) for _ in range(2))
    state, came = _filled(*hop, first)
    times: dict[str, list[float]] = {"lay open": [], "prove": [], "check": []}
    proofs = list[BlockProof]()
    for number in range(rounds):
        progress("proving", number, rounds)
        traced = _timed(times["lay open"], partial(hop[1].trace, state, block, first, came))
        statement = BlockStatement(_RECEIPT, block, window_root(came), window_root(traced.went))
        parts = (traced.came, traced.past, traced.inputs, traced.sums, hop[1].weights(block))
        proofs.append(_timed(times["prove"], partial(prove_block, statement, *parts)))
        check = partial(_check, client[1], block, first, statement, proofs[-1].encoded)
        if wrong := _timed(times["check"], check):
            raise NotAllowed(f"an honest proof does not hold: {wrong}", next_command="shoal doctor")
    proof = proofs[-1]
    return {
        "model": model.name,
        "format": format,
        "block": block,
        "window": window,
        "lay_open_s": median(times["lay open"]),
        "prove_s": median(times["prove"]),
        "check_s": median(times["check"]),
        "argument_bytes": len(proof.argument),
        "past_bytes": len(proof.past),
        "bytes": len(proof.encoded),
    }


def _loaded(
    model: LocalModel, block: int, format: Format, settings: Settings, tokens: int
) -> tuple[Runner, BlockTracer]:
    runner = load_blocks(model, Span(block, block + 1), Numerics(format, "auto", "rows"), settings)
    pool = runner.make_pool(tokens + WINDOW)
    own = pool.promise(WINDOW)
    own.resize(WINDOW)
    return runner, runner.tracer().over(own)


def _filled(runner: Runner, tracer: BlockTracer, first: int) -> tuple[KvState, Floats]:
    """A session as long as the window's end, and the window's rows."""
    chance = np.random.default_rng(0)
    state = runner.open(runner.span, tracer.pool.promise(first + WINDOW))
    hidden = chance.standard_normal((first + WINDOW, runner.width), np.float32)
    for at in range(0, len(hidden), WINDOW):
        (out,) = runner.forward([SessionRows(state, at, hidden[at : at + WINDOW].copy())])
        if isinstance(out, ShoalError):
            raise out
    return state, hidden[first:]


def _check(
    tracer: BlockTracer, block: int, first: int, statement: BlockStatement, payload: bytes
) -> str | None:
    """What a client does with a proof."""
    sizes = ProofSizes(WINDOW, tracer.width, tuple(tracer.products(block)), tracer.past_bytes(first))
    proof = read_proof(payload, sizes)
    if window_root(proof.came) != statement.came:
        return "rows"
    traced = tracer.replay(block, first, proof.came, proof.past, proof.sums)
    if window_root(traced.went) != statement.went:
        return "what comes out"
    return first_unproved(statement, proof, traced.inputs, tracer.weights(block))


def _timed(times: list[float], make: Callable[[], _Made]) -> _Made:
    began = time.perf_counter()
    made = make()
    times.append(time.perf_counter() - began)
    return made
