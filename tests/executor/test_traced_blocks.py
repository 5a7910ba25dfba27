"""A block laid open: its bits are those of an ordinary forward, and whoever has the sums finds the same."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shoal.errors import LocalProtocolError, NotAllowed, RemoteProtocolError, ShoalError
from shoal.executor.arrays import Floats
from shoal.executor.fused import KV_FORMAT, FusedRunner
from shoal.executor.kernels.c_kernels import NUMBER, library
from shoal.executor.kernels.structs import KvStruct
from shoal.executor.kernels.tiles import quads_by_row, tile_quads
from shoal.executor.load import load_runner
from shoal.executor.pages import PAGE
from shoal.executor.proofs.tracer import BlockTracer
from shoal.executor.runner import KvState, Runner, SessionRows
from shoal.executor.shape import llama_shape
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.store.local_model import LocalModel
from shoal.testing.checkpoints import FAMILIES
from shoal.types import Format, Kv, Span

pytestmark = pytest.mark.skipif(library() is None, reason="the C kernels are not built")

WIDTH = 64
SPAN = Span(1, 3)
BLOCKS = range(1, 3)
TOKENS = 84
"""Two windows of 32 and a part of a third."""

Models = Callable[[str], LocalModel]


def loaded(model: LocalModel, span: Span, format: Format, kv: Kv, cache: Path) -> FusedRunner:
    runner = load_runner(model, span, format, kv=kv, threads=2, cache=cache)
    assert isinstance(runner, FusedRunner)
    runner.make_pool(256)
    return runner


def forward(runner: Runner, state: KvState, hidden: Floats) -> Floats:
    (out,) = runner.forward([SessionRows(state, state.length, hidden.copy())])
    assert not isinstance(out, ShoalError)
    return out.copy()


@pytest.mark.parametrize(
    ("family", "format", "kv"),
    [
        ("llama", "int8", "auto"),
        ("llama", "w8a8", "int8"),
        ("qwen2", "w8a8", "auto"),  # biases
        ("gemma3", "int8", "int8"),  # norms of what is added, norms of heads, sliding windows
    ],
)
def test_a_traced_block_has_the_bits_of_a_forward_and_a_replay_those_of_the_trace(
    families: Models, tmp_path: Path, family: str, format: Format, kv: Kv
) -> None:
    model = families(family)
    runner, one = (loaded(model, span, format, kv, tmp_path) for span in (SPAN, Span(2, 3)))
    assert runner.pool is not None
    state = runner.open(SPAN, runner.pool.promise(128))
    hidden = np.random.default_rng(3).standard_normal((TOKENS, WIDTH), np.float32)
    out = np.concatenate([forward(runner, state, hidden[a : a + 7]) for a in range(0, TOKENS, 7)])
    kept = of_session(runner, state)
    tracer, checker = traced_apart(runner), one.tracer()
    shape = llama_shape(open_checkpoint(model.path).config)
    assert shape is not None and list(shape.products) == tracer.products(2)
    for first in range(0, TOKENS, 32):
        rows = hidden[first : first + 32]
        assert tracer.boundaries(state, range(1, 1), first, rows) == []
        inner, last = tracer.boundaries(state, BLOCKS, first, rows)
        assert np.array_equal(last, out[first : first + 32])
        traced = tracer.trace(state, 2, first, inner)
        assert np.array_equal(traced.went, last)
        for x, w, y in zip(traced.inputs, tracer.weights(2), traced.sums, strict=True):
            assert np.array_equal(x.astype(np.int64) @ w.T.astype(np.int64), y)
        assert len(traced.past) == tracer.past_bytes(first) == first // PAGE * shape.kv_page_bytes(kv)
        checked = checker.replay(2, first, inner, traced.past, traced.sums)
        assert np.array_equal(checked.went, last)
        assert all(map(np.array_equal, checked.inputs, traced.inputs))
        check_that_all_counts(checker, first, inner, traced.past, traced.sums, last)
    others = np.random.default_rng(4).standard_normal((32, WIDTH), np.float32)
    for first in (0, 32):  # whoever asks may have sent others than the first time
        tracer.boundaries(state, BLOCKS, first, others)
        tracer.trace(state, 2, first, others)
    assert np.array_equal(of_session(runner, state), kept)
    with pytest.raises(LocalProtocolError, match="without pages of its own"):
        runner.tracer().boundaries(state, BLOCKS, 0, others)


@pytest.mark.parametrize("kv", ["auto", "int8"])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(8, 128), (1, 24), (3, 5), (2, 1)])
def test_what_a_page_takes_is_known_from_the_config_alone(kv: Kv, kv_heads: int, head_dim: int) -> None:
    config = FAMILIES["llama"]().to_dict() | {"num_key_value_heads": 1}
    shape, native = llama_shape(config), library()
    assert shape is not None and native is not None
    shape = replace(shape, kv_heads=kv_heads, head_dim=head_dim)
    laid_out = KvStruct(shape.heads, kv_heads, head_dim, NUMBER[KV_FORMAT[kv]], 1.0)
    assert shape.kv_page_bytes(kv) == native.kv_layer_bytes(byref(laid_out))


def traced_apart(runner: FusedRunner) -> BlockTracer:
    """What lays blocks open, with pages of its own."""
    assert runner.pool is not None
    own = runner.pool.promise(32)
    own.resize(32)
    return runner.tracer().over(own)


def of_session(runner: FusedRunner, state: KvState) -> np.ndarray:
    """All that a session's pages hold."""
    assert runner.pool is not None
    return runner.pool.arena.reshape(-1, runner.page_bytes)[list(state.pages.numbers)]


def check_that_all_counts(
    checker: BlockTracer, first: int, came: Floats, past: bytes, sums: tuple[np.ndarray, ...], went: Floats
) -> None:
    """Whatever is changed of what a hop shows, something else comes out."""
    for number in range(len(sums)):
        changed = [y.copy() for y in sums]
        changed[number][0] += 1 << 20
        assert not np.array_equal(checker.replay(2, first, came, past, changed).went, went)
    if first:
        changed_past = bytes(len(past))
        assert not np.array_equal(checker.replay(2, first, came, changed_past, sums).went, went)
    with pytest.raises(RemoteProtocolError):
        checker.replay(2, first, came, past + bytes(2), sums)


def test_what_a_session_has_not_computed_is_not_traced(families: Models, tmp_path: Path) -> None:
    runner = loaded(families("llama"), SPAN, "int8", "auto", tmp_path)
    assert runner.pool is not None
    state = runner.open(SPAN, runner.pool.promise(64))
    rows = np.zeros((32, WIDTH), np.float32)
    forward(runner, state, rows)
    tracer = traced_apart(runner)
    for look in (
        lambda: tracer.boundaries(state, BLOCKS, 32, rows),
        lambda: tracer.trace(state, 1, 16, rows),
    ):
        with pytest.raises(NotAllowed, match="has not computed positions"):
            look()
    state.pages.resize(0)  # it has ended
    with pytest.raises(NotAllowed):
        tracer.boundaries(state, BLOCKS, 0, rows)


@pytest.mark.parametrize(
    ("format", "why"), [("int4", "grouped4"), ("bf16", "bf16"), ("fp32", "the C kernels on the CPU")]
)
def test_other_formats_are_refused_by_name(
    families: Models, tmp_path: Path, format: Format, why: str
) -> None:
    runner = load_runner(families("llama"), SPAN, format, kv="auto", threads=1, cache=tmp_path)
    runner.make_pool(64)
    with pytest.raises(NotAllowed, match=why):
        runner.tracer()


def test_tiles_of_bytes_are_turned_back() -> None:
    values = np.random.default_rng(0).integers(-127, 128, (37, 70)).astype(np.int8)
    assert np.array_equal(quads_by_row(tile_quads(values), 37, 70), values)
