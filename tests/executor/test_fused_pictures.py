"""Rows of pictures, by C and by torch: they see each other or turn by their places, as on the modules."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import trio

from shoal.errors import StepFailed
from shoal.executor import engine as engine_module
from shoal.executor.batcher import ForwardOutput, Job
from shoal.executor.engine import Engine
from shoal.executor.runner import SessionRows
from shoal.executor.thread import ComputeThread
from shoal.models.build.load import load_span_module
from shoal.models.build.span import SpanModule
from shoal.models.store.store import ModelStore
from shoal.testing.seeing import write_seeing
from shoal.types import Format, Kernels, SessionId

from .shaped_spans import (
    POOLS,
    WHOLE,
    WIDTH,
    Models,
    difference,
    emptied,
    fused,
    opened,
    rows,
    run,
    same,
    step,
)


def test_rows_of_a_picture_see_each_other(models: Models, tmp_path: Path, kernels: Kernels) -> None:
    model = models("gemma3")
    module = load_span_module(model, WHOLE)
    assert isinstance(module, SpanModule)
    hidden, mutual = rows(40), ((3, 7), (20, 32))
    runner = fused(model, tmp_path, "bf16", kernels)
    whole, pieces = opened(runner), opened(runner)
    (found,) = runner.forward([SessionRows(whole, 0, hidden.copy(), mutual=mutual)])
    (first,) = runner.forward([SessionRows(pieces, 0, hidden[:9].copy(), mutual=mutual[:1])])
    (last,) = runner.forward([SessionRows(pieces, 9, hidden[9:].copy(), mutual=mutual[1:])])
    assert isinstance(found, np.ndarray) and isinstance(first, np.ndarray) and isinstance(last, np.ndarray)
    given = torch.from_numpy(hidden)[None]
    expected = module.forward(given, module.new_cache(), 0, mutual=mutual)[0].numpy()
    causal = module.forward(given, module.new_cache(), 0)[0].numpy()
    assert difference(found, expected, hidden) < 0.02 < difference(causal, expected, hidden)
    assert difference(np.concatenate([first, last]), expected, hidden) < 0.02
    cache = module.new_cache()
    parts = [
        module.forward(given[:, :9], cache, 0, mutual=mutual[:1]),
        module.forward(given[:, 9:], cache, 9, mutual=mutual[1:]),
    ]
    assert np.allclose(torch.cat(parts, 1)[0].numpy(), expected, atol=1e-4)


def test_rows_of_a_picture_turn_by_where_they_are_in_it(
    models: Models, tmp_path: Path, kernels: Kernels
) -> None:
    model = ModelStore(tmp_path / "store").resolve(str(write_seeing(tmp_path / "seeing", "qwen2_vl")))
    module = load_span_module(model, WHOLE)
    assert isinstance(module, SpanModule)
    hidden, grids = rows(40), ((3, 2, 4), (20, 5, 2))
    runner = fused(model, tmp_path, "bf16", kernels)
    whole, pieces, beside = opened(runner), opened(runner), opened(runner)
    found, text = runner.forward(
        [SessionRows(whole, 0, hidden.copy(), grids=grids), SessionRows(beside, 0, rows(9))]
    )
    (first,) = runner.forward([SessionRows(pieces, 0, hidden[:24].copy(), grids=grids)])
    (last,) = runner.forward([SessionRows(pieces, 24, hidden[24:].copy(), grids=grids)])
    assert isinstance(found, np.ndarray) and isinstance(first, np.ndarray) and isinstance(last, np.ndarray)
    given = torch.from_numpy(hidden)[None]
    expected = module.forward(given, module.new_cache(), 0, grids=grids)[0].numpy()
    plain = module.forward(given, module.new_cache(), 0)[0].numpy()
    far = difference(plain, expected, hidden) / 5
    assert difference(found, expected, hidden) < far
    assert difference(np.concatenate([first, last]), expected, hidden) < far
    assert isinstance(text, np.ndarray)
    assert same(text, run(runner, opened(runner), rows(9), (9,)), runner), "text beside it is as ever"
    said = fused(models("qwen2"), tmp_path, "bf16", kernels)
    (refused,) = said.forward([SessionRows(opened(said), 0, rows(4), grids=((0, 2, 2),))])
    assert isinstance(refused, StepFailed) and "no rows of this model have three" in refused.message


def test_in_other_models_no_token_sees_those_behind_it(models: Models) -> None:
    module = load_span_module(models("llama"), WHOLE)
    with pytest.raises(StepFailed, match="no tokens of a llama model see those behind them"):
        module.forward(torch.zeros((1, 4, WIDTH)), module.new_cache(), 0, mutual=((0, 2),))


def test_nor_do_they_on_the_kernels_whatever_a_step_says(
    models: Models, tmp_path: Path, kernels: Kernels
) -> None:
    runner = fused(models("llama"), tmp_path, "bf16", kernels)
    bad, good = opened(runner), opened(runner)
    said, found = runner.forward(
        [SessionRows(bad, 0, rows(4), mutual=((0, 2),)), SessionRows(good, 0, rows(4))]
    )
    assert isinstance(said, StepFailed) and "no tokens of a llama model see" in said.message
    assert isinstance(found, np.ndarray) and (bad.length, good.length) == (0, 4)


async def test_no_slice_of_a_prefill_cuts_rows_that_see_each_other(
    models: Models, tmp_path: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    format: Format = "fp32" if kernels == "torch" else "int8"
    runner, mutual = fused(models("gemma3"), tmp_path, format, kernels), ((10, 40),)
    alone = opened(runner)
    (expected,) = runner.forward([SessionRows(alone, 0, rows(60), mutual=mutual)])
    assert isinstance(expected, np.ndarray)
    expected = expected.copy()
    thread, pieces, forward = ComputeThread(), list[tuple[int, int]](), runner.forward

    def noted(batch: Sequence[SessionRows]) -> list[ForwardOutput]:
        pieces.extend((r.position, r.position + len(r.hidden)) for r in batch if len(r.hidden) > 1)
        return forward(batch)

    monkeypatch.setattr(runner, "forward", noted)
    engine = Engine(runner, POOLS[runner], thread, format=format)
    decoding, session = (SessionId(bytes([n]) * 16) for n in range(2))
    for each in (decoding, session):
        await engine.open(each)
        engine.grow(each, 64)
    known, ended = trio.Event(), trio.Event()

    async def decode_on() -> None:
        position = 0
        while not ended.is_set():
            with suppress(StepFailed):  # it may run beside what fails below
                await step(engine, decoding, position % 60, rows(1, seed=position))
                position += 1
            if position == 4:
                known.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(decode_on)
        await known.wait()
        found = await step(engine, session, 0, rows(60), mutual)
        whole = tuple(pieces)
        with monkeypatch.context() as patch:
            patch.setattr(engine_module._Step, "uncut", Job.uncut)  # pyright: ignore[reportPrivateUsage]
            with pytest.raises(StepFailed, match="rows are cut from others that they see"):
                await step(engine, session, 0, rows(60), mutual)
        ended.set()
    assert len(whole) > 1 and not any(10 < end < 40 for _, end in whole)
    assert same(found, expected, runner)
    alone.pages.resize(0)
    alone.pages.pool.forget(alone.pages)
    for each in (decoding, session):
        engine.close(each)
    await emptied(engine)
    thread.close()
