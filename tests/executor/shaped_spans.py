"""Spans of Llama's shape on the kernels and by torch, and how their tests run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
import trio

from shoal.errors import ShoalError
from shoal.executor.arrays import Floats, split
from shoal.executor.codecs import decode, encode
from shoal.executor.device.runner import DeviceRunner
from shoal.executor.engine import Engine, StepOutput
from shoal.executor.fused import FusedRunner
from shoal.executor.kernels import c_kernels
from shoal.executor.load import load_runner
from shoal.executor.pages import PagePool
from shoal.executor.runner import KvState, SessionRows
from shoal.models.checkpoint.multimodal import Stretches
from shoal.models.store.local_model import LocalModel
from shoal.testing.checkpoints import BLOCKS
from shoal.types import Format, Kernels, Kv, SessionId, Span

needs_c = pytest.mark.skipif(c_kernels.library() is None, reason="the C kernels are not built")
BY_BOTH = [pytest.param("auto", marks=needs_c, id="c"), "torch"]

SHAPED = ("llama", "llama_untied", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "gemma3", "granite")
"""Families whose blocks the kernels run, sliding windows, biases, head norms and all."""
WIDTH = 64
WHOLE = Span(0, BLOCKS)

Models = Callable[[str], LocalModel]
Shaped = FusedRunner | DeviceRunner
POOLS: WeakKeyDictionary[Shaped, PagePool] = WeakKeyDictionary()


def fused(
    model: LocalModel,
    cache: Path,
    format: Format,
    kernels: Kernels = "auto",
    *,
    kv: Kv = "auto",
    span: Span = WHOLE,
) -> Shaped:
    """A span with room for a few hundred tokens, in which every unused place is poisoned."""
    runner = load_runner(model, span, format, kv=kv, threads=2, cache=cache, kernels=kernels)
    assert isinstance(runner, DeviceRunner if kernels == "torch" else FusedRunner)
    POOLS[runner] = runner.make_pool(2048)
    if isinstance(runner, FusedRunner):
        POOLS[runner].arena.fill(0xFF)  # NaN in every format
        return runner
    assert runner.kv is not None
    for vectors in (runner.kv.keys, runner.kv.values):
        for held in vars(vectors).values():
            if isinstance(held, torch.Tensor):
                held.view(torch.uint8).fill_(0xFF)
    return runner


def opened(runner: Shaped, tokens: int = 128, span: Span | None = None) -> KvState:
    """A session's state."""
    return runner.open(span or runner.span, POOLS[runner].promise(tokens))


def rows(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, WIDTH), np.float32)


def run(runner: Shaped, state: KvState, hidden: Floats, pieces: tuple[int, ...]) -> Floats:
    """Feed ``hidden`` in pieces, from where the state is."""
    outs: list[Floats] = []
    for piece in split(hidden.copy(), pieces):
        (out,) = runner.forward([SessionRows(state, state.length, piece)])
        assert isinstance(out, np.ndarray)
        outs.append(out)
    return np.concatenate(outs)


def same(found: Floats, expected: Floats, runner: Shaped) -> bool:
    """Whether two ways to compute the same rows agree: to the bit, or but for bfloat16's rounding."""
    if isinstance(runner, FusedRunner):
        return np.array_equal(found, expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected)) < 0.012


def difference(found: Floats, expected: Floats, entered: Floats) -> float:
    """What is wrong, against what the blocks add."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - entered))


async def step(
    engine: Engine, session: SessionId, position: int, hidden: Floats, mutual: Stretches = ()
) -> Floats:
    """One step through an engine, all rows wanted. Raises what becomes of it instead."""
    loop, event = trio.lowlevel.current_trio_token(), trio.Event()
    results: list[object] = []

    def done(result: object) -> None:
        results.append(result)
        loop.run_sync_soon(event.set)

    payload = encode(hidden, "float32")
    count = len(hidden)
    engine.submit(session, position, payload, "float32", count, count, "float32", done, mutual=mutual)
    with trio.fail_after(60):
        await event.wait()
    (result,) = results
    if isinstance(result, ShoalError):
        raise result
    assert isinstance(result, StepOutput), result
    return decode(result.payload, "float32", len(hidden), engine.width)


async def emptied(engine: Engine) -> None:
    """Every session closed, every page given back, at the latest after the next forwards."""
    with trio.fail_after(30):
        while engine.pool.taken:  # noqa: ASYNC110 — the thread that gives pages back tells nobody
            await trio.sleep(0.01)
    assert (engine.sessions, engine.tokens_free) == (0, engine.tokens)
