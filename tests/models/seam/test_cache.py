"""A cache has an entry for each block; blocks, masks and we ask it the same few things."""

from __future__ import annotations

import pytest
import torch

from shoal.models.seam.cache import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)
from shoal.models.seam.model import cache_argument
from shoal.testing.checkpoints import BLOCKS, FAMILIES

from .conftest import Built


def rows(n: int) -> torch.Tensor:
    return torch.randn(1, 2, n, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_made_of_a_config_has_an_entry_for_each_block(family: str) -> None:
    config = FAMILIES[family]()
    layers = DynamicCache(config=config).layers
    assert isinstance(layers, list)
    for layer in layers:
        assert isinstance(layer, (CacheLayerMixin, LinearAttentionCacheLayerMixin))
    assert len(layers) <= config.num_hidden_layers == BLOCKS


def test_a_block_that_sees_all_tokens_has_a_plain_layer() -> None:
    assert {type(layer) for layer in DynamicCache(config=FAMILIES["llama"]()).layers} == {DynamicLayer}


def test_a_plain_layer_keeps_what_it_is_given_and_returns_all() -> None:
    layer, keys, values = DynamicLayer(), rows(5), rows(5)
    assert (layer.get_seq_length(), layer.is_initialized) == (0, False)
    layer.update(keys[:, :, :3], values[:, :, :3])
    found = layer.update(keys[:, :, 3:], values[:, :, 3:])
    assert torch.equal(found[0], keys) and torch.equal(found[1], values)
    assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    assert (layer.get_seq_length(), layer.is_initialized, layer.is_sliding) == (5, True, False)


def test_to_crop_by_a_negative_number_forgets_the_last_tokens() -> None:
    layer = DynamicLayer()
    layer.update(rows(5), rows(5))
    layer.crop(-2)
    assert layer.get_seq_length() == 3


def test_masks_are_decided_by_the_length_that_a_layer_tells() -> None:
    """So a layer of ours need not keep its keys and values where transformers does."""

    class Told(DynamicLayer):
        def get_seq_length(self) -> int:
            return 7

    assert tuple(Told().get_mask_sizes(2)) == (9, 0)


def test_a_layer_with_a_window_says_so_counts_all_tokens_and_forgets_the_first() -> None:
    layers = DynamicCache(config=FAMILIES["gemma3"]()).layers
    assert [layer.is_sliding for layer in layers] == [True, True, False] * 2
    sliding = layers[0]
    assert sliding.sliding_window == 8 and isinstance(sliding, CacheLayerMixin)
    sliding.update(rows(20), rows(20))
    assert (sliding.get_seq_length(), sliding.keys.shape[2]) == (20, 7)


def test_a_layer_with_a_window_can_be_cropped_while_it_has_forgotten_nothing() -> None:
    sliding = DynamicCache(config=FAMILIES["gemma3"]()).layers[0]
    sliding.update(rows(5), rows(5))
    sliding.crop(-2)
    assert (sliding.get_seq_length(), sliding.keys.shape[2]) == (3, 3)


def test_a_recurrent_state_is_of_another_kind() -> None:
    for layer in DynamicCache(config=FAMILIES["mamba"]()).layers:
        assert isinstance(layer, LinearAttentionCacheLayerMixin) and not isinstance(layer, CacheLayerMixin)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_each_block_updates_the_entry_of_its_index_which_may_be_ours(family: str, built: Built) -> None:
    class Counted(DynamicLayer):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = 0

        def update(self, key_states, value_states, *args, **kwargs):
            self.tokens += key_states.shape[2]
            return super().update(key_states, value_states, *args, **kwargs)

    model = built(family)
    cache = DynamicCache(config=model.config)
    cache.layers = [Counted() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]), **cache_argument(model, cache), use_cache=True)
    assert [layer.get_seq_length() for layer in cache.layers] == [3] * BLOCKS
    assert {layer.tokens for layer in cache.layers if isinstance(layer, Counted)} == {3}
