"""The cache of one session in one span."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch

from shoal.errors import CannotRollBack
from shoal.models.build.growing_kv import FloatRows, Int8Rows, RowsLayer
from shoal.models.seam.cache import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)
from shoal.models.seam.config import PretrainedConfig
from shoal.types import Kv, Span

CONTINUED = frozenset(
    {
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "lfm2",
        "lfm2_moe",
        "mamba2",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5_text",
        "qwen3_5_moe_text",
        "qwen3_next",
    }
)
"""Model types with recurrent states whose code can go on with several tokens at once. Others (Mamba's,
Jamba's) take them for the beginning of a sequence: their convolution does not see the tokens before."""


@dataclass(slots=True)
class Cache:
    """Keys, values and states of the tokens ``[0, length)``."""

    states: DynamicCache
    length: int = 0
    torn: bool = False
    """A forward has failed half-way: some blocks hold more tokens than ``length``."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Bytes of one block's cache: ``constant`` and ``per_token``, up to ``window`` tokens (0: no limit)."""

    constant: int
    per_token: int
    window: int


@dataclass(frozen=True, slots=True)
class KvCost:
    """What sessions cost, by block."""

    layers: tuple[LayerCost, ...]

    def bytes(self, tokens: int) -> int:
        """Bytes that a session of ``tokens`` tokens takes."""
        return sum(
            layer.constant + layer.per_token * (min(tokens, layer.window) if layer.window else tokens)
            for layer in self.layers
        )


def new_states(config: PretrainedConfig, span: Span, kv: Kv = "auto") -> DynamicCache:
    """An empty cache whose entries are indexed as in the whole model.

    With ``int8`` the keys and values of blocks that see every token are kept so. Sliding windows and
    recurrent states, which do not grow, stay as the model has them.

    Masks and positions are computed from the first entry of a kind, which may belong to a block that is not
    here: so the entries of blocks off the span are those of a block in it, of the same kind if there is one.
    """
    states = DynamicCache(config=config)
    kind = Int8Rows if kv == "int8" else FloatRows
    states.layers = [RowsLayer(kind) if type(layer) is DynamicLayer else layer for layer in states.layers]
    own = states.layers[span.start : span.end]
    attention = next((layer for layer in own if isinstance(layer, CacheLayerMixin)), None)
    for index, layer in enumerate(states.layers):
        if index not in span:
            alike = next((mine for mine in own if type(mine) is type(layer)), None)
            states.layers[index] = (
                alike or (attention if isinstance(layer, CacheLayerMixin) else None) or layer
            )
    return states


def own_layers(states: DynamicCache, span: Span) -> list[Any]:
    """The entries of the span's blocks."""
    return states.layers[span.start : span.end]


def goes_on_one_by_one(config: PretrainedConfig, states: DynamicCache, span: Span) -> bool:
    """Whether a sequence that has begun must be given to these blocks token by token."""
    if config.model_type in CONTINUED:
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in own_layers(states, span))


def rolls_back(states: DynamicCache, span: Span) -> bool:
    """Whether :func:`crop` can take a cache of these blocks back to any position."""
    return not any(
        isinstance(layer, LinearAttentionCacheLayerMixin) or getattr(layer, "is_sliding", False)
        for layer in own_layers(states, span)
    )


def crop(cache: Cache, length: int, span: Span) -> None:
    """Forget the tokens from ``length`` (1 or more) on.

    Raises:
        CannotRollBack: a sliding window has moved past them, or a recurrent state has taken them in. The
            cache is as it was.
    """
    layers = own_layers(cache.states, span)
    for layer in layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            if cache.torn or length != cache.length:
                raise CannotRollBack(
                    f"a recurrent state cannot go back from position {cache.length} to {length}; replay"
                )
        elif getattr(layer, "is_sliding", False):
            held = layer.get_seq_length()
            if held > length and held >= layer.sliding_window:
                raise CannotRollBack(
                    f"a sliding window cannot go back from position {held} to {length}; replay"
                )
    for layer in layers:
        if isinstance(layer, CacheLayerMixin) and layer.get_seq_length() > length:
            cast(Any, layer).crop(length - layer.get_seq_length())
    cache.length, cache.torn = length, False


def cache_layer_bytes(layer: object) -> int:
    """Bytes of what a cache entry holds."""
    if isinstance(layer, RowsLayer):
        return layer.held_bytes
    return sum(t.numel() * t.element_size() for t in _tensors(list(vars(layer).values())))


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(cast(dict[object, object], value).values()))
    elif isinstance(value, (list, tuple)):
        for item in cast("list[object]", value):
            yield from _tensors(item)
