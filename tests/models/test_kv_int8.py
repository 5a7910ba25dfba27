"""Keys and values in 8 bits: what a session saves, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from shoal.models.build.growing_kv import FloatRows, Int8Rows
from shoal.models.build.kv import Cache, cache_layer_bytes, own_layers
from shoal.models.build.load import load_span_module
from shoal.models.build.span import SpanModule
from shoal.models.store.local_model import LocalModel
from shoal.types import Span

Local = Callable[[str], LocalModel]
SPAN = Span(1, 5)
HIDDEN = torch.randn(1, 40, 64, generator=torch.Generator().manual_seed(3))


def run(module: SpanModule, cache: Cache, *cuts: int) -> torch.Tensor:
    return torch.cat([module.forward(HIDDEN[:, a:b], cache, a) for a, b in pairwise(cuts)], 1)


@pytest.mark.parametrize(
    ("family", "share"),
    [("llama", 0.32), ("deepseek_v3", 0.32), ("gpt_oss", 0.6), ("qwen3_next", 0.9), ("mamba", 1)],
)
def test_it_takes_less_and_changes_little(family: str, share: float, local: Local) -> None:
    """Only blocks that see every token keep 8 bits: a window or a state does not grow with the session."""
    exact = load_span_module(local(family), SPAN)
    small = load_span_module(local(family), SPAN, kv_as="int8")
    cache = small.new_cache()
    found, expected = (run(m, c, 0, 20, 21, 30) for m, c in ((small, cache), (exact, exact.new_cache())))
    added = expected - HIDDEN[:, :30]  # what the blocks put in
    assert float((found - expected).norm() / added.norm()) < 0.01
    assert small.kv_bytes(30) <= share * exact.kv_bytes(30)
    held = sum(cache_layer_bytes(layer) for layer in own_layers(cache.states, SPAN))
    assert 0 <= small.kv_bytes(30) - held <= 4 * 256


def test_a_step_sent_twice_gives_the_same(local: Local) -> None:
    small = load_span_module(local("llama"), SPAN, kv_as="int8")
    cache = small.new_cache()
    first = run(small, cache, 0, 20, 21, 29)
    assert torch.equal(run(small, cache, 20, 21, 29), first[:, 20:])
    assert torch.equal(run(small, cache, 0, 20, 21, 29), first)


def test_a_part_of_the_span_keeps_8_bits_too(local: Local) -> None:
    small = load_span_module(local("llama"), SPAN, kv_as="int8")
    assert small.part(Span(2, 4)).kv_bytes(30) * 2 == small.kv_bytes(30)


def test_rows_are_kept_as_they_come_however_they_come() -> None:
    x = torch.randn(1, 2, 200, 8, generator=torch.Generator().manual_seed(1))
    x[:, :, 7] = 0
    for kind, error in ((FloatRows, 0), (Int8Rows, 0.5 / 127)):
        rows = kind(x)
        rows.put(x[:, :, :150], 0)
        for at in range(150, 200):
            rows.put(x[:, :, at : at + 1], at)
        assert ((rows.get(200) - x).abs() <= error * 1.001 * x.abs().amax(-1, keepdim=True)).all()
        at_once = kind(x)
        at_once.put(x, 0)
        assert torch.equal(at_once.get(200), rows.get(200))
        assert at_once.get(200).dtype == x.dtype
