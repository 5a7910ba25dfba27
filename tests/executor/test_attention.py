"""Attention over KV in pages: as the formula has it, with bits that depend on neither company nor threads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from shoal.executor.arrays import Floats, address, empty, narrow, widen
from shoal.executor.kernels import c_kernels
from shoal.executor.kernels.built import NATIVE
from shoal.executor.kernels.c_kernels import NUMBER
from shoal.executor.kernels.structs import KvStruct, SequenceStruct
from shoal.executor.pages import PAGE
from shoal.types import Format

pytestmark = pytest.mark.skipif(c_kernels.library() is None, reason="the C kernels are not built")

HEADS, KV_HEADS, DIMS = 6, 2, 20
LONGEST = 1100
"""Tokens: several of the pieces in which a context is taken."""
KV_FORMATS: tuple[Format, ...] = ("bf16", "int8")


def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.pool_new.restype = c_void_p
    library.pool_new.argtypes = [c_int]
    library.pool_free.argtypes = [c_void_p]
    library.kv_layer_bytes.argtypes = [POINTER(KvStruct)]
    library.kv_layer_bytes.restype = c_int64
    library.kv_put.argtypes = [POINTER(KvStruct), c_int, c_void_p, c_int, c_void_p, c_void_p]
    library.attention_floats.argtypes = [POINTER(KvStruct), c_void_p, c_int, c_int]
    library.attention_floats.restype = c_int64
    library.attention_units.argtypes = [POINTER(KvStruct), c_int, c_void_p, c_int, c_int]
    library.attend.argtypes = [
        *(c_void_p, POINTER(KvStruct), c_int, c_int, c_void_p, c_int, c_void_p, c_int64, c_void_p, c_void_p)
    ]
    return library


@cache
def level(name: str) -> ctypes.CDLL:
    return declared(ctypes.CDLL(str(NATIVE / f"kernels-{name}.so")))


def levels() -> list[str]:
    """What this CPU can run."""
    best = level("v1").cpu_level()
    names = ("v1", "v3", "v4")
    return [n for n in names if int(n[1]) <= best and (NATIVE / f"kernels-{n}.so").exists()]


@dataclass(frozen=True, slots=True)
class Step:
    """Rows of one session: ``rows`` of them after ``position`` cached tokens."""

    position: int
    rows: int = 1


class Attention:
    """A layer's KV of one context, which every session shares, in pages whose unused places are poisoned."""

    def __init__(self, format: Format, name: str | None = None) -> None:
        self.library = level(name or levels()[-1])
        self.kv = KvStruct(HEADS, KV_HEADS, DIMS, NUMBER[format], DIMS**-0.5)
        self.kv.page_bytes = self.library.kv_layer_bytes(byref(self.kv))
        pages = (LONGEST + PAGE - 1) // PAGE
        self.arena = empty((pages, self.kv.page_bytes), np.uint8)
        self.arena.fill(0xFF)
        self.kv.arena = address(self.arena)
        self.pages = np.random.default_rng(0).permutation(pages).astype(np.int32)
        random = np.random.default_rng(1)
        shape = (LONGEST, KV_HEADS, DIMS)
        self.keys, self.values = (random.standard_normal(shape, np.float32) for _ in range(2))
        sequence = self._sequences([Step(0, LONGEST)])
        for token in range(LONGEST):
            key, value = (np.ascontiguousarray(x[token]) for x in (self.keys, self.values))
            self.library.kv_put(byref(self.kv), 0, sequence, token, address(key), address(value))

    def _sequences(self, steps: Sequence[Step]) -> ctypes.Array[SequenceStruct]:
        sequences = (SequenceStruct * len(steps))()
        row = 0
        for sequence, step in zip(sequences, steps, strict=True):
            sequence.row, sequence.rows, sequence.position = row, step.rows, step.position
            sequence.pages = address(self.pages)
            row += step.rows
        return sequences

    def units(self, steps: Sequence[Step], threads: int, window: int = 0) -> int:
        sequences = self._sequences(steps)
        return self.library.attention_units(byref(self.kv), window, sequences, len(steps), threads)

    def run(self, steps: Sequence[Step], *, threads: int = 2, window: int = 0) -> Floats:
        """What the rows of all steps get, each with its position's query: ``[rows, HEADS, DIMS]``."""
        sequences, kv, count = self._sequences(steps), byref(self.kv), len(steps)
        asked = np.concatenate([queries(range(s.position, s.position + s.rows)) for s in steps])
        out = empty(asked.shape)
        scratch = empty((self.library.attention_floats(kv, sequences, count, threads),))
        scratch.fill(np.nan)
        pool = self.library.pool_new(threads)
        stride = HEADS * DIMS
        self.library.attend(
            pool, kv, 0, window, sequences, count, address(asked), stride, address(out), address(scratch)
        )
        self.library.pool_free(pool)
        return out


def queries(positions: Sequence[int]) -> Floats:
    """Each position's own, ``[n, HEADS, DIMS]``, large enough that some tokens count more than others."""
    return 2 * np.random.default_rng(2).standard_normal((LONGEST, HEADS, DIMS), np.float32)[list(positions)]


def expected(held: Attention, position: int, window: int) -> Floats:
    """The formula, in float64, from keys and values as bfloat16."""
    seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
    keys, values = (widen(narrow(x[seen])).astype(np.float64) for x in (held.keys, held.values))
    query = queries([position])[0].reshape(KV_HEADS, HEADS // KV_HEADS, DIMS)
    scores = np.einsum("kgd,tkd->kgt", query, keys) * DIMS**-0.5
    weights = np.exp(scores - scores.max(2, keepdims=True))
    weights /= weights.sum(2, keepdims=True)
    return np.einsum("kgt,tkd->kgd", weights, values).reshape(HEADS, DIMS)


@pytest.fixture(scope="module", params=KV_FORMATS)
def held(request: pytest.FixtureRequest) -> Attention:
    return Attention(request.param)


@pytest.mark.parametrize("window", [0, 5, 300], ids=lambda w: f"window {w}")
def test_it_is_what_the_formula_gives_over_contexts_of_any_length(held: Attention, window: int) -> None:
    bound = 0.02 if held.kv.format == NUMBER["int8"] else 1e-5
    for position in (0, 1, 15, 16, 255, 256, 257, 511, 700, LONGEST - 1):
        found, wanted = held.run([Step(position)], window=window)[0], expected(held, position, window)
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < bound, position


@pytest.mark.parametrize("window", [0, 5, 300], ids=lambda w: f"window {w}")
def test_a_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads(
    held: Attention, window: int
) -> None:
    """Whether the context is split over the threads or not, in a prefill, and beside other sessions."""
    mine = [250, 255, 256, 600, 1000]
    alone = {position: held.run([Step(position)], threads=1, window=window)[0] for position in mine}
    crowd = [Step(31 * n) for n in range(30)]
    for threads in (1, 2, 5):
        for position in mine:
            assert np.array_equal(
                held.run([Step(position)], threads=threads, window=window)[0], alone[position]
            )
            crowded = held.run([*crowd, Step(position)], threads=threads, window=window)
            assert np.array_equal(crowded[-1], alone[position])
            for before, after in ((3, 4), (90, 50)):
                prefill = Step(position - before, before + after)
                found = held.run([prefill], threads=threads, window=window)
                assert np.array_equal(found[before], alone[position])


def test_few_queries_are_split_over_the_context_and_many_are_not(held: Attention) -> None:
    one, blocks = [Step(LONGEST - 1)], KV_HEADS
    assert held.units(one, 2) == blocks * -(-LONGEST // 256)
    assert held.units([Step(100)], 2) == blocks, "a short context is one piece"
    assert held.units(one * 30, 2) == 30 * blocks
    assert held.units(one, 2, window=300) == blocks * 2, "what no row sees is left out"


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (32, 4), (16, 1)], ids=str)
@pytest.mark.parametrize("threads", [2, 8, 16])
def test_one_session_far_into_its_context_gives_every_thread_work(
    heads: int, kv_heads: int, threads: int
) -> None:
    """SmolLM2 135M has three heads of keys and values, TinyLlama 1.1B four: fewer than there are threads."""
    kv = KvStruct(heads, kv_heads, 64, NUMBER["bf16"], 0.125)
    sequences = (SequenceStruct * 1)(SequenceStruct(row=0, rows=1, position=4095))
    library = level("v1")
    assert library.attention_units(byref(kv), 0, sequences, 1, threads) >= threads
    assert library.attention_units(byref(kv), 0, sequences, 1, threads) == kv_heads * 4096 // 256


@pytest.mark.parametrize("format", KV_FORMATS)
def test_every_level_of_the_cpu_gives_the_same_bits(format: Format) -> None:
    steps = [Step(LONGEST - 1), Step(700, 9), Step(3)]
    results = [
        [Attention(format, name).run(steps, window=window) for window in (0, 300)] for name in levels()
    ]
    assert len(results) == len(levels())
    for found in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found, results[0], strict=True))
