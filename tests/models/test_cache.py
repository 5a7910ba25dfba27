"""A session's cache: rolling back, being refused to, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shoal.errors import CannotRollBack, PositionGap, StepFailed
from shoal.models.build.kv import cache_layer_bytes, own_layers
from shoal.models.build.load import load_span_module
from shoal.models.build.span import SpanModule
from shoal.models.store.local_model import LocalModel
from shoal.types import Span

Local = Callable[[str], LocalModel]
HIDDEN = torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def span(local: Local) -> SpanModule:
    return load_span_module(local("llama"), Span(1, 4))


def test_a_roll_back_leaves_no_trace(span: SpanModule) -> None:
    cache, other = span.new_cache(), span.new_cache()
    span.forward(HIDDEN[:, :6], cache, 0)
    span.forward(HIDDEN[:, 10:20], cache, 6)
    span.crop(cache, 6)
    assert span.cache_length(cache) == 6
    span.forward(HIDDEN[:, :6], other, 0)
    again = span.forward(HIDDEN[:, 6:10], cache, 6)
    assert torch.equal(again, span.forward(HIDDEN[:, 6:10], other, 6))


def test_a_step_repeated_rolls_back_by_itself(span: SpanModule) -> None:
    cache = span.new_cache()
    span.forward(HIDDEN[:, :6], cache, 0)
    first = span.forward(HIDDEN[:, 6:9], cache, 6)
    assert torch.equal(span.forward(HIDDEN[:, 6:9], cache, 6), first)
    assert span.cache_length(cache) == 9


def test_a_step_beyond_the_cache_is_refused(span: SpanModule) -> None:
    with pytest.raises(PositionGap):
        span.forward(HIDDEN[:, :1], span.new_cache(), 3)
    with pytest.raises(PositionGap):
        span.crop(span.new_cache(), 1)


@pytest.mark.parametrize(
    "wrong", [HIDDEN[0], HIDDEN[:, :0], HIDDEN[..., :63], HIDDEN.double(), HIDDEN.long()]
)
def test_hidden_states_of_another_kind_are_refused(span: SpanModule, wrong: torch.Tensor) -> None:
    with pytest.raises(StepFailed):
        span.forward(wrong, span.new_cache(), 0)


def test_a_window_can_go_back_until_it_has_moved(local: Local) -> None:
    span = load_span_module(local("mistral"), Span(0, 2))  # a window of 8
    cache, other = span.new_cache(), span.new_cache()
    span.forward(HIDDEN[:, :3], cache, 0)
    span.forward(HIDDEN[:, 3:7], cache, 3)
    span.crop(cache, 3)
    span.forward(HIDDEN[:, :3], other, 0)
    assert torch.equal(span.forward(HIDDEN[:, 3:12], cache, 3), span.forward(HIDDEN[:, 3:12], other, 3))
    with pytest.raises(CannotRollBack):
        span.crop(cache, 11)
    assert span.cache_length(cache) == 12
    span.crop(cache, 12)


@pytest.mark.parametrize("family", ["mamba", "qwen3_next"])
def test_a_recurrent_state_cannot_go_back_but_to_the_beginning(family: str, local: Local) -> None:
    span = load_span_module(local(family), Span(0, 3))
    cache = span.new_cache()
    first = span.forward(HIDDEN[:, :5], cache, 0)
    with pytest.raises(CannotRollBack):
        span.crop(cache, 4)
    span.crop(cache, 0)
    assert torch.equal(span.forward(HIDDEN[:, :5], cache, 0), first)


def fail_in_the_last_block(span: SpanModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(span.blocks.modules[-1], "forward", fail)


def test_after_a_fault_the_cache_is_cut_to_where_it_was(
    span: SpanModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = span.new_cache()
    span.forward(HIDDEN[:, :4], cache, 0)
    other = span.new_cache()
    span.forward(HIDDEN[:, :4], other, 0)
    with monkeypatch.context() as patched:
        fail_in_the_last_block(span, patched)
        with pytest.raises(RuntimeError):
            span.forward(HIDDEN[:, 4:6], cache, 4)
    assert span.cache_length(cache) == 4
    assert torch.equal(span.forward(HIDDEN[:, 4:6], cache, 4), span.forward(HIDDEN[:, 4:6], other, 4))


def test_after_a_fault_a_recurrent_state_is_not_trusted(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = load_span_module(local("mamba"), Span(0, 3))
    cache = span.new_cache()
    span.forward(HIDDEN[:, :4], cache, 0)
    with monkeypatch.context() as patched:
        fail_in_the_last_block(span, patched)
        with pytest.raises(RuntimeError):
            span.forward(HIDDEN[:, 4:5], cache, 4)
    with pytest.raises(CannotRollBack):
        span.forward(HIDDEN[:, 4:5], cache, 4)


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba", "deepseek_v3", "qwen3_next"])
def test_kv_bytes_is_what_a_session_takes(family: str, local: Local) -> None:
    span = load_span_module(local(family), Span(1, 4))
    for tokens in (1, 7, 24):
        cache = span.new_cache()
        for position in range(tokens):
            span.forward(HIDDEN[:, position : position + 1], cache, position)
        held = sum(cache_layer_bytes(layer) for layer in own_layers(cache.states, span.span))
        assert 0 <= span.kv_bytes(tokens) - held <= 3 * 256  # a window of 8 holds 7 between two steps


def test_sessions_do_not_see_each_other(span: SpanModule) -> None:
    alone, first, second = span.new_cache(), span.new_cache(), span.new_cache()
    expected = [span.forward(HIDDEN[:, i : i + 1], alone, i) for i in range(5)]
    for i in range(5):
        span.forward(HIDDEN[:, 10 + i : 11 + i], second, i)
        assert torch.equal(span.forward(HIDDEN[:, i : i + 1], first, i), expected[i])
