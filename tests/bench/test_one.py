"""A whole model in one process: it computes what transformers does, and its speeds are finite."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.bench.accuracy import TOKENS, WAYS, shipped_text, windows_of
from shoal.bench.executor import torch_thread
from shoal.bench.one import OneProcess, load_one
from shoal.config import Settings
from shoal.errors import LocalProtocolError
from shoal.executor.runner import KvState
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Format

WINDOW = [5, 9, 3, 77, 4, 4, 18, 30, 2, 61]


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
async def test_losses_are_those_of_transformers(
    settings: Settings, model: LocalModel, format: Format
) -> None:
    with torch_thread() as thread:
        one = await load_one(thread, model, settings, format, kv="auto", tokens=64)
        found = await thread.run(partial(one.losses, WINDOW, "float32", 2))
    whole = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    with torch.inference_mode():
        logits = whole(torch.tensor([WINDOW])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(WINDOW[1:]), reduction="none")
    torch.testing.assert_close(
        torch.from_numpy(found), expected, rtol=0, atol={"fp32": 1e-4, "bf16": 0.02, "int8": 0.05}[format]
    )


async def test_speeds_are_measured_again_and_again_within_the_kv_that_was_asked_for(
    settings: Settings, model: LocalModel
) -> None:
    with torch_thread() as thread:
        one = await load_one(thread, model, settings, "bf16", kv="auto", tokens=3 * 48)
        for _ in range(3):
            assert await thread.run(partial(one.decode, 3)) > 0
            assert await thread.run(partial(one.prefill, 40)) > 0
        assert await thread.run(partial(one.ends_seconds, 2)) > 0


@pytest.mark.models
@pytest.mark.parametrize(("family", "times"), [("llama", 1), ("mamba", 3)])
async def test_what_is_cached_before_decoding_is_computed_once_where_caches_can_go_back(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, times: int
) -> None:
    prompts: list[int] = []
    chosen = OneProcess._chosen

    def counted(
        one: OneProcess, states: Sequence[KvState], position: int, pieces: Sequence[list[int]]
    ) -> list[int]:
        if position == 0:
            prompts.append(len(states))
        return chosen(one, states, position, pieces)

    monkeypatch.setattr(OneProcess, "_chosen", counted)
    local = ModelStore(tmp_path / "models").show(str(write_checkpoint(tmp_path / family, family)))
    with torch_thread() as thread:
        one = await load_one(thread, local, settings, "fp32", kv="auto", tokens=4 * 48)
        for _ in range(3):
            assert await thread.run(partial(one.decode, 2)) > 0
    assert prompts == [2] * times


async def test_a_long_context_is_computed_once_and_decoded_from_again(
    settings: Settings, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    fill = OneProcess._fill

    def counted(one: OneProcess, state: KvState, tokens: int, *more: Any) -> None:
        computed.append(tokens)
        fill(one, state, tokens, *more)

    monkeypatch.setattr(OneProcess, "_fill", counted)
    with torch_thread() as thread:
        one = await load_one(thread, model, settings, "bf16", kv="auto", tokens=400)
        await thread.run(partial(one.fill, 300, lambda *_: None))
        for _ in range(3):
            assert await thread.run(partial(one.decode_after, 300)) > 0
        with pytest.raises(LocalProtocolError, match="no session with 301 tokens"):
            await thread.run(partial(one.decode_after, 301))
    assert computed == [300]


def test_the_text_is_long_enough_and_cut_into_whole_windows() -> None:
    text = shipped_text()
    assert len(text.split()) > 25_000  # at least a token a word
    assert TOKENS >= 20_000
    assert text.isascii() and "\r" not in text
    assert windows_of(range(10), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_every_kind_of_loss_is_measured_alone() -> None:
    names = {way.name for way in WAYS}
    assert {"fp32", "bf16", "int8", "w8a8", "int4", "fp32+wire-int8", "fp32+wire-int6"} <= names
    assert "bf16+kv-int8" in names
