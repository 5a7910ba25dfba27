"""Spans of Llama's shape, on the C kernels and by torch: what the modules give, whoever runs beside.

In int8 and int4 the C kernels give the same bits in any company; torch, and so an accelerator, the same
numbers but for bfloat16's rounding.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import trio

from shoal.errors import CannotRollBack, ShoalError
from shoal.executor import load
from shoal.executor.arrays import Floats
from shoal.executor.engine import Engine
from shoal.executor.load import fused_shape, load_runner
from shoal.executor.modules import ModuleRunner
from shoal.executor.runner import SessionRows
from shoal.executor.shape import llama_shape
from shoal.executor.thread import ComputeThread
from shoal.executor.weights.llama_blocks import expected_names
from shoal.models.build.load import load_span_module
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.store.local_model import LocalModel
from shoal.testing.checkpoints import BLOCKS
from shoal.types import Format, Kernels, Kv, SessionId, Span

from .shaped_spans import (
    POOLS,
    SHAPED,
    WHOLE,
    Models,
    difference,
    emptied,
    fused,
    needs_c,
    opened,
    rows,
    run,
    same,
    step,
)

# ---- the same as the model's own modules ----


@cache
def by_modules(model: LocalModel) -> Floats:
    """What the model's own modules make of 45 rows."""
    reference = load_span_module(model, WHOLE)
    return reference.forward(torch.from_numpy(rows(45))[None], reference.new_cache(), 0)[0].numpy()


@pytest.mark.parametrize("family", SHAPED)
@pytest.mark.parametrize(
    ("kernels", "format", "kv", "bound"),
    [
        *(
            pytest.param(*how, marks=needs_c)
            for how in (
                ("auto", "bf16", "auto", 0.012),
                ("auto", "bf16", "int8", 0.02),
                ("auto", "int8", "auto", 0.04),
            )
        ),
        ("torch", "fp32", "auto", 1e-5),
        ("torch", "bf16", "auto", 0.012),
        ("torch", "bf16", "int8", 0.02),
        ("torch", "int8", "auto", 0.04),
    ],
)
def test_each_family_gives_what_its_modules_give(
    models: Models, tmp_path: Path, family: str, kernels: Kernels, format: Format, kv: Kv, bound: float
) -> None:
    """Prefill, single steps and a longer piece, over several pages and beyond every sliding window."""
    model, hidden = models(family), rows(45)
    expected = by_modules(model)
    runner = fused(model, tmp_path, format, kernels, kv=kv)
    found = run(runner, opened(runner), hidden, (10, 1, 1, 20, 1, 12))
    assert difference(found, expected, hidden) < bound


@needs_c
@pytest.mark.parametrize("family", SHAPED)
@pytest.mark.parametrize(
    ("format", "bound"), [("bf16", 0.01), ("int8", 0.01), ("w8a8", 0.04), ("int4", 0.03)]
)
def test_torch_gives_what_the_c_kernels_give(
    models: Models, tmp_path: Path, family: str, format: Format, bound: float
) -> None:
    hidden = rows(45)
    c, by_torch = (fused(models(family), tmp_path, format, kernels) for kernels in ("auto", "torch"))
    pieces = (10, 1, 1, 20, 1, 12)
    expected = run(c, opened(c), hidden, pieces)
    assert difference(run(by_torch, opened(by_torch), hidden, pieces), expected, hidden) < bound


@needs_c
def test_other_families_and_fp32_stay_with_their_modules(models: Models, tmp_path: Path) -> None:
    for family, format in (("gpt2", "int8"), ("mixtral", "bf16"), ("gemma2", "bf16"), ("llama", "fp32")):
        runner = load_runner(models(family), Span(0, 2), format, kv="auto", threads=1, cache=tmp_path)
        assert isinstance(runner, ModuleRunner), family


@needs_c
def test_a_block_with_a_tensor_that_we_do_not_know_stays_with_its_modules(models: Models) -> None:
    checkpoint = open_checkpoint(models("llama").path)
    shape = llama_shape(checkpoint.config)
    assert shape is not None
    assert expected_names(shape, checkpoint, 0)
    known = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
    checkpoint.tensors["model.layers.0.mlp.surprise.weight"] = known
    assert not expected_names(shape, checkpoint, 0)
    assert fused_shape(checkpoint, WHOLE, "int8") is None


@needs_c
def test_without_kernels_the_modules_run_it(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "library", lambda: None)
    runner = load_runner(models("llama"), Span(0, 2), "int8", kv="auto", threads=1, cache=tmp_path)
    assert isinstance(runner, ModuleRunner)


def test_parts_of_a_span_add_up_to_it(models: Models, tmp_path: Path, kernels: Kernels) -> None:
    runner, hidden = fused(models("qwen3"), tmp_path, "int8", kernels), rows(20)
    whole = run(runner, opened(runner), hidden, (19, 1))
    first, second = opened(runner, span=Span(0, 2)), opened(runner, span=Span(2, BLOCKS))
    halfway = run(runner, first, hidden, (19, 1))
    assert same(run(runner, second, halfway, (19, 1)), whole, runner)


# ---- whoever runs beside ----


@pytest.mark.parametrize(
    ("kernels", "format", "kv", "family"),
    [
        *(
            pytest.param("auto", format, kv, family, marks=needs_c)
            for format in ("int8", "w8a8", "int4")
            for kv in ("auto", "int8")
            for family in ("llama", "gemma3")
        ),
        # By torch what is in 8 bits of w8a8 may be one of 127 steps away.
        *(("torch", "int8", "auto", "llama"), ("torch", "int8", "int8", "gemma3")),
        *(("torch", "int4", "auto", "gemma3"), ("torch", "int4", "int8", "llama")),
    ],
)
def test_a_row_is_the_same_in_any_company(
    models: Models, tmp_path: Path, kernels: Kernels, family: str, format: Format, kv: Kv
) -> None:
    """At batch 1, 2, 8 and 32, at any place of the batch, beside any steps: so a step can be checked."""
    runner = fused(models(family), tmp_path, format, kernels, kv=kv)
    mine = rows(24, seed=7)
    alone = run(runner, opened(runner), mine, (20, 1, 1, 1, 1))
    for company in (2, 8, 32):
        others = [opened(runner, tokens=48) for _ in range(company - 1)]
        for number, other in enumerate(others):
            run(runner, other, rows(1 + number % 9, seed=number), (1 + number % 9,))
        state = opened(runner)
        run(runner, state, mine[:20], (7, 13))
        for at in range(20, 24):
            batch = [SessionRows(o, o.length, rows(1 + (at + n) % 3, seed=at)) for n, o in enumerate(others)]
            batch.insert(at % company, SessionRows(state, state.length, mine[at : at + 1].copy()))
            out = runner.forward(batch)[at % company]
            assert isinstance(out, np.ndarray)
            assert same(out[0], alone[at], runner)
        for held in (state, *others):
            held.pages.resize(0)
            held.pages.pool.forget(held.pages)


async def test_through_the_engine_too(models: Models, tmp_path: Path, kernels: Kernels) -> None:
    """Thirty-two clients at once, each with its own prompt, get what each would get alone."""
    format: Format = "fp32" if kernels == "torch" else "int8"
    runner = fused(models("llama"), tmp_path, format, kernels)
    thread = ComputeThread()
    engine = Engine(runner, POOLS[runner], thread, format=format)
    prompts = {SessionId(bytes([n]) * 16): rows(3 + n, seed=n) for n in range(32)}
    alone: dict[SessionId, list[Floats]] = {}
    together: dict[SessionId, list[Floats]] = {}

    async def decode_some(session: SessionId, into: dict[SessionId, list[Floats]]) -> None:
        await engine.open(session)
        engine.grow(session, 48)
        outs = [await step(engine, session, 0, prompts[session])]
        for position in range(len(prompts[session]), len(prompts[session]) + 5):
            outs.append(await step(engine, session, position, outs[-1][-1:]))
        into[session] = outs
        engine.close(session)

    for session in prompts:
        await decode_some(session, alone)
    async with trio.open_nursery() as nursery:
        for session in prompts:
            nursery.start_soon(decode_some, session, together)
    for session in prompts:
        assert all(same(a, b, runner) for a, b in zip(together[session], alone[session], strict=True))
    await emptied(engine)
    thread.close()


async def test_many_sessions_leave_nothing_behind(models: Models, tmp_path: Path, kernels: Kernels) -> None:
    runner = fused(models("llama"), tmp_path, "int8", kernels)
    thread = ComputeThread()
    engine = Engine(runner, POOLS[runner], thread, format="int8")
    prompt, process = rows(40), psutil.Process()
    held: list[int] = []
    at_once = trio.CapacityLimiter(30)

    async def visit(number: int) -> None:
        session = SessionId(number.to_bytes(16, "big"))
        async with at_once:
            await engine.open(session)
            engine.grow(session, 64)
            await step(engine, session, 0, prompt[: 1 + number % 40])
            engine.close(session)

    crowd = 40 if kernels == "torch" else 250  # one of the small model's steps takes torch as long as five
    for visits in range(4):
        async with trio.open_nursery() as nursery:
            for number in range(crowd):
                nursery.start_soon(visit, crowd * visits + number)
        held.append(process.memory_info().rss)
    await emptied(engine)
    assert held[-1] <= held[1] * 1.02
    thread.close()


# ---- rolling back, and what it holds ----


def test_a_session_goes_back_to_any_position(models: Models, tmp_path: Path, kernels: Kernels) -> None:
    runner, hidden = fused(models("mistral"), tmp_path, "int8", kernels), rows(40)
    state = opened(runner)
    straight = run(runner, state, hidden, (30, 10))
    for position in (33, 17, 0):
        (out,) = runner.forward([SessionRows(state, position, hidden[position:].copy())])
        assert isinstance(out, np.ndarray)
        assert same(out, straight[position:], runner)
        assert len(state.pages.numbers) == 3


def test_a_step_that_leaves_tokens_out_is_refused_and_others_run(
    models: Models, tmp_path: Path, kernels: Kernels
) -> None:
    runner = fused(models("llama"), tmp_path, "int8", kernels)
    gap, good = opened(runner), opened(runner)
    refused, ran = runner.forward([SessionRows(gap, 5, rows(1)), SessionRows(good, 0, rows(1))])
    assert not isinstance(refused, np.ndarray)
    assert refused.code == "position_gap"
    assert isinstance(ran, np.ndarray)
    assert not gap.pages.numbers


def test_kv_in_int8_takes_about_half(models: Models, tmp_path: Path, kernels: Kernels) -> None:
    model = models("llama")
    sizes = {kv: fused(model, tmp_path, "int8", kernels, kv=kv).kv_bytes for kv in ("auto", "int8")}
    assert 0.5 <= sizes["int8"] / sizes["auto"] <= 0.65  # heads of 16 elements; a scale is 4 bytes


# ---- the second start ----


def test_packed_weights_are_read_from_disk_the_second_time(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Kernels
) -> None:
    model, hidden = models("qwen2"), rows(8)
    first = fused(model, tmp_path, "int8", kernels)
    expected = run(first, opened(first), hidden, (8,))

    def no_more(*_: object) -> None:
        raise AssertionError("packed a second time")

    monkeypatch.setattr("shoal.executor.weights.tensors.pack", no_more)
    second = fused(model, tmp_path, "int8", kernels)
    assert np.array_equal(run(second, opened(second), hidden, (8,)), expected)


@needs_c
def test_damaged_packed_weights_are_made_anew(models: Models, tmp_path: Path) -> None:
    model, hidden = models("qwen2"), rows(8)
    first = fused(model, tmp_path, "int8")
    expected = run(first, opened(first), hidden, (8,))
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    second = fused(model, tmp_path, "int8")
    assert np.array_equal(run(second, opened(second), hidden, (8,)), expected)


@needs_c
def test_a_full_disk_costs_the_next_start_its_time_and_this_one_nothing(
    models: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    runner = fused(models("llama"), blocked, "int8")
    assert run(runner, opened(runner), rows(3), (3,)).sum() < np.inf
    assert "not kept for the next start" in caplog.text


@pytest.mark.parametrize(
    ("kernels", "family", "format", "batch", "roll_back", "exact"),
    [
        pytest.param("auto", "llama", "int8", True, True, False, marks=needs_c),
        ("auto", "llama", "fp32", False, True, True),
        ("auto", "gpt2", "int8", False, True, False),
        ("auto", "gemma2", "fp32", False, False, True),
        ("torch", "llama", "int8", True, True, False),
        ("torch", "llama", "fp32", True, True, False),
    ],
)
def test_a_runner_says_what_it_can_do(
    models: Models,
    tmp_path: Path,
    kernels: Kernels,
    family: str,
    format: Format,
    batch: bool,
    roll_back: bool,
    exact: bool,
) -> None:
    runner = load_runner(
        models(family), Span(0, 2), format, kv="auto", threads=1, cache=tmp_path, kernels=kernels
    )
    found = runner.capabilities
    assert (found.batch, found.roll_back, found.exact) == (batch, roll_back, exact)
    modules = kernels == "auto" and format == "fp32"
    assert (found.untrainable == "") == modules, found.untrainable


@pytest.mark.parametrize(
    ("kernels", "family", "format", "bits"),
    [
        pytest.param("auto", "llama", "int8", "rows", marks=needs_c),
        pytest.param("auto", "llama", "w8a8", "rows", marks=needs_c),
        pytest.param("auto", "llama", "int4", "rows", marks=needs_c),
        pytest.param("auto", "llama", "bf16", "batch", marks=needs_c),
        pytest.param("auto", "llama", "published", "batch", marks=needs_c),  # floats, which bf16 rounds
        ("auto", "llama", "fp32", "modules"),
        ("auto", "gpt2", "int8", "modules"),
        ("torch", "llama", "int8", "torch"),
        ("torch", "gpt2", "int8", "torch"),
    ],
)
def test_a_runner_says_on_what_its_bits_depend(
    models: Models, tmp_path: Path, kernels: Kernels, family: str, format: Format, bits: str
) -> None:
    model, span = models(family), Span(0, 2)
    runner = load_runner(model, span, format, kv="auto", threads=1, cache=tmp_path, kernels=kernels)
    assert runner.bits == bits


@needs_c
@pytest.mark.parametrize(("format", "alike"), [("int8", True), ("bf16", False)])
def test_only_where_rows_stand_alone_has_a_prefill_the_same_bits_in_other_pieces(
    models: Models, tmp_path: Path, format: Format, alike: bool
) -> None:
    """bf16 adds up in another order beyond 8 rows. What is sent again to fill a cache has 8 rows at most."""
    runner = fused(models("llama"), tmp_path, format)
    given = rows(24, seed=3)
    at_once, merged, alone = (run(runner, opened(runner), given, cut) for cut in ((24,), (8,) * 3, (1,) * 24))
    assert np.array_equal(merged, alone)
    assert np.array_equal(at_once, alone) == alike
    assert (runner.bits == "rows") == alike


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_it_says_of_going_back_is_so(models: Models, tmp_path: Path, family: str) -> None:
    runner = load_runner(models(family), Span(0, 2), "fp32", kv="auto", threads=1, cache=tmp_path)
    state = runner.open(runner.span, runner.make_pool(256).promise(256))
    hidden = np.full((200, runner.width), 0.1, np.float32)
    (first,) = runner.forward([SessionRows(state, 0, hidden)])
    (again,) = runner.forward([SessionRows(state, 1, hidden[1:2])])
    assert not isinstance(first, ShoalError)
    assert isinstance(again, CannotRollBack) is not runner.capabilities.roll_back
