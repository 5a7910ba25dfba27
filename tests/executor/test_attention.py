"""Attention over KV in pages: as the formula has it, with bits that depend on neither company nor threads."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest

from shoal.executor.arrays import Floats, narrow, widen
from shoal.executor.kernels import c_kernels
from shoal.executor.kernels.c_kernels import NUMBER
from shoal.executor.kernels.structs import KvStruct, SequenceStruct
from tests.executor.attending import (
    DIMS,
    HEADS,
    KV_FORMATS,
    KV_HEADS,
    LONGEST,
    Attention,
    Step,
    declared,
    queries,
)

native = c_kernels.library()
if native is None:
    pytest.skip("the C kernels are not built", allow_module_level=True)


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
    return Attention(native, request.param)


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
    units = declared(native).attention_units(byref(kv), 0, sequences, 1, threads)
    assert units == kv_heads * 4096 // 256 >= threads
