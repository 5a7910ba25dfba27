"""What keeps the keys, values and states of a sequence, block by block.

Relied on: ``DynamicCache(config=…)`` has in ``layers`` an entry for each block, which may be replaced; a
block asks the entry of its own index, and masks and positions ask the first of a kind. An entry that sees all
tokens is exactly a ``DynamicLayer``, whose ``update`` takes the new keys and values ``[batch, heads, n,
dims]`` and returns all, and from which ``get_seq_length`` alone decides about masks; ``crop(-n)`` forgets the
last ``n`` tokens. One with a window says ``is_sliding`` and ``sliding_window`` and forgets what is outside of
it. One with a recurrent state is a ``LinearAttentionCacheLayerMixin``; one with keys and values, a
``CacheLayerMixin``.
"""

from __future__ import annotations

from shoal.models.seam.contract import expect_arguments, expect_members, relied_on

with relied_on("cache classes"):
    from transformers import DynamicCache
    from transformers.cache_utils import (
        CacheLayerMixin,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionCacheLayerMixin,
    )

    expect_arguments(DynamicCache.__init__, "config")
    expect_members(DynamicCache(), "layers")
    expect_members(
        DynamicLayer(), "keys", "values", "is_initialized", "is_sliding", "get_seq_length", "get_mask_sizes"
    )
    expect_arguments(DynamicLayer.update, "key_states", "value_states")
    expect_arguments(DynamicLayer.crop, "tokens_to_remove")
    expect_members(DynamicSlidingWindowLayer(sliding_window=2), "is_sliding", "sliding_window", "crop")

__all__ = ["CacheLayerMixin", "DynamicCache", "DynamicLayer", "LinearAttentionCacheLayerMixin"]
