"""The self-check: a part that cannot be shown to stand alone is refused, before it gives a wrong token.

A span is right if a block is a function of its own cache, the hidden states and the position, and nothing
else. So two runs on different hidden states must hand every block the same other arguments (which finds
models whose blocks also look at the token ids, the first embedding or learned tables outside of the blocks),
each block must receive exactly what the block before it gave, every block's cache must grow by what was run,
and a session must not notice another (which finds models that keep their state in their modules).
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from shoal.errors import UnsupportedModel
from shoal.models.build.ends import EndsModule
from shoal.models.build.kv import Cache, KvCost, LayerCost, cache_layer_bytes, own_layers
from shoal.models.build.loader import REFUSED, first_line
from shoal.models.build.placeholders import Passthrough, split_hidden
from shoal.models.build.span import SpanModule
from shoal.models.seam.cache import CacheLayerMixin

ROWS = 2
"""Tokens of the probe's prefill; one more is decoded."""
MOST_BESIDE = 2
"""Values that a block's answer may have beside hidden states."""


@dataclass(slots=True)
class _Call:
    """What one block was given and gave."""

    hidden: torch.Tensor
    others: tuple[object, ...]
    output: torch.Tensor | None = None


def check_blocks(module: SpanModule) -> KvCost:
    """Run a few tokens through a span just built.

    Returns:
        What its cache costs.

    Raises:
        UnsupportedModel: the blocks do not stand alone.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (1, ROWS + 1, module.width)
    one, other = (torch.randn(shape, generator=generator).to(module.dtype) for _ in range(2))
    name = type(module.model).__name__
    cache, calls = _recorded(module, one, fill=0.0)
    _, others = _recorded(module, other, fill=1.0)
    alone, _ = _recorded(module, one, fill=0.0)
    _check_chain(module, calls, others)
    # `alone` goes on at once; on `cache` another session has run since.
    with _missing_is_refusal(name):
        undisturbed = module.forward(one[:, ROWS:], alone, alone.length)
    cost, decoded = _measured(module, cache, one, name)
    if not torch.equal(decoded, undisturbed):
        raise refusal(name, "a session's state is kept outside of its cache")
    return cost


def check_encoder(module: SpanModule) -> KvCost:
    """Run a few tokens through a span of an encoder just built. It has no cache that could cost anything.

    Raises:
        UnsupportedModel: the blocks do not stand alone.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (1, ROWS, module.width)
    one, other = (torch.randn(shape, generator=generator).to(module.dtype) for _ in range(2))
    _, calls = _recorded(module, one, fill=0.0)
    _, others = _recorded(module, other, fill=1.0)
    _, again = _recorded(module, one, fill=0.0)
    _check_chain(module, calls, others)
    if not _alike(calls[-1].output, again[-1].output):
        raise refusal(type(module.model).__name__, "a text's state is kept for the next one")
    return KvCost(())


def _check_chain(module: SpanModule, calls: list[_Call], others: list[_Call]) -> None:
    """Each block is given what the one before gave, and beside it the same for all hidden states."""
    name, expected = type(module.model).__name__, len(module.blocks.modules)
    if len(calls) != expected or len(others) != expected:
        raise refusal(name, f"{len(calls)} of {expected} blocks were run")
    for before, after in itertools.pairwise(calls):
        if before.output is None or not torch.equal(before.output, after.hidden):
            raise refusal(name, "something happens to the hidden states between its blocks")
    for a, b in zip(calls, others, strict=True):
        if not _alike(a.others, b.others):
            raise refusal(name, "its blocks look at more than hidden states, position and cache")


def check_embed(ends: EndsModule) -> None:
    """Embed a few tokens.

    Raises:
        UnsupportedModel: what the blocks receive depends on the tokens beside the hidden states.
    """
    name = type(ends.model).__name__
    last = min(ends.vocab_size, ends.context) - 1
    with _missing_is_refusal(name):
        first = ends.embed([0, 0], 0)
        arguments = ends.doors[0].arguments
        ends.embed([last, last], 0)
    if tuple(first.shape) != (1, 2, ends.width):
        raise refusal(name, f"its blocks receive {list(first.shape)} for two tokens")
    if not _alike(arguments, ends.doors[0].arguments):
        raise refusal(name, "its blocks look at the tokens beside the hidden states")
    if not ends.stateless and not ends.knows_position and not torch.equal(first[:, 0], first[:, 1]):
        raise refusal(name, "its embedding depends on the position, which it does not accept")


def check_head(ends: EndsModule) -> None:
    """Find out how the model's blocks answer, and that the head takes what they give.

    Raises:
        UnsupportedModel: no logits, or of an encoder no hidden states, of the right shape come out.
    """
    behind, width = (ends.last_hidden, ends.width) if ends.stateless else (ends.head, ends.vocab_size)
    name = type(ends.model).__name__
    hidden = torch.zeros((1, 1, ends.width), dtype=ends.dtype)
    failed: Exception | None = None
    for beside in range(MOST_BESIDE + 1):
        for door in ends.doors:
            door.beside = beside
        try:
            found = behind(hidden)
        except REFUSED as error:
            failed = error
            continue
        if tuple(found.shape) == (1, 1, width):
            return
    raise refusal(name, f"what is behind its blocks gives no {width} numbers for hidden states") from failed


def _recorded(module: SpanModule, hidden: torch.Tensor, fill: float) -> tuple[Cache, list[_Call]]:
    """Prefill all but the last row; what every block was given and gave."""
    calls: list[_Call] = []

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(_Call(*split_hidden(args, kwargs)))

    def after(block: nn.Module, args: object, output: Any) -> None:
        calls[-1].output = output[0] if isinstance(output, tuple) else output

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in module.blocks.modules]
    hooks += [block.register_forward_hook(after, prepend=True) for block in module.blocks.modules]
    standins = [m for m in module.model.modules() if isinstance(m, Passthrough)]
    cache = module.probe_cache()
    try:
        for standin in standins:
            standin.fill = fill
        with _missing_is_refusal(type(module.model).__name__):
            module.forward(hidden[:, :ROWS], cache, cache.length)
    finally:
        for hook in hooks:
            hook.remove()
        for standin in standins:
            standin.fill = 0.0
    return cache, calls


def _measured(
    module: SpanModule, cache: Cache, hidden: torch.Tensor, name: str
) -> tuple[KvCost, torch.Tensor]:
    """Decode one more row: what each entry of the cache grew by, and what came out."""
    layers = own_layers(cache.states, module.span)
    before = [cache_layer_bytes(layer) for layer in layers]
    with _missing_is_refusal(name):
        decoded = module.forward(hidden[:, ROWS:], cache, cache.length)
    costs: list[LayerCost] = []
    for layer, held in zip(layers, before, strict=True):
        if isinstance(layer, CacheLayerMixin) and layer.get_seq_length() != ROWS + 1:
            raise refusal(name, "a block's cache does not grow with what is run")
        per_token = cache_layer_bytes(layer) - held
        window = int(getattr(layer, "sliding_window", None) or 0)
        costs.append(LayerCost(max(0, held - ROWS * per_token), per_token, window))
    return KvCost(tuple(costs)), decoded


def _alike(a: object, b: object) -> bool:
    """Whether two arguments hold the same tensors; what holds none is taken for the same."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        left, right = cast("dict[object, object]", a), cast("dict[object, object]", b)
        return left.keys() == right.keys() and all(_alike(left[k], right[k]) for k in left)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        left_items, right_items = cast("list[object]", a), cast("list[object]", b)
        return len(left_items) == len(right_items) and all(map(_alike, left_items, right_items))
    return True


@contextmanager
def _missing_is_refusal(name: str) -> Generator[None]:
    try:
        yield
    except REFUSED as error:
        raise refusal(name, f"it fails without its other parts ({first_line(error)})") from error


def refusal(name: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{name} cannot be split into spans: {what}", check="run it whole, with transformers, on one machine"
    )
