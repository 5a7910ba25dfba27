"""Encoders with a decoder: the few things that we ask of their stacks, blocks and caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t

from shoal.models.seam.cache import DynamicCache, DynamicLayer
from shoal.models.seam.model import CACHE_NAMES, accepted_inputs
from shoal.models.seam.seq2seq import (
    STACKS,
    EncoderDecoderCache,
    WhisperFeatureExtractor,
    bias_table,
    seq2seq_class,
    stacks,
)

SIZES: dict[str, Any] = {"vocab_size": 30, "d_model": 32}
CONFIGS = {
    "t5": lambda: t.T5Config(**SIZES, d_ff=32, d_kv=8, num_heads=4, num_layers=2),
    "whisper": lambda: t.WhisperConfig(
        **SIZES,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=10,
        pad_token_id=0,
        decoder_start_token_id=1,
    ),
}


def built(family: str) -> Any:
    config = CONFIGS[family]()
    found = seq2seq_class(config)
    assert found is not None
    return found(config).eval()


@pytest.mark.parametrize("family", sorted(CONFIGS))
@torch.inference_mode()
def test_a_block_of_the_decoder_makes_keys_of_what_the_encoder_gave_once(family: str) -> None:
    encoder, decoder = stacks(built(family))
    names = STACKS[encoder.config.model_type]
    assert hasattr(encoder, names.norm)
    assert hasattr(decoder, names.norm)
    own, cross = DynamicCache(), DynamicCache()
    own.layers, cross.layers = ([DynamicLayer() for _ in range(2)] for _ in range(2))
    both = EncoderDecoderCache(own, cross)
    given, ids = torch.randn(1, 5, 32), torch.tensor([[1]])
    accepted = accepted_inputs(decoder)
    assert accepted & set(CACHE_NAMES)
    named = {name: both for name in CACHE_NAMES if name in accepted}
    decoder(input_ids=ids, encoder_hidden_states=given, use_cache=True, **named)
    held = [layer.keys.clone() for layer in cross.layers]
    assert [keys.shape[2] for keys in held] == [5, 5]
    # Only the shape counts of what is given from then on.
    decoder(input_ids=ids, encoder_hidden_states=torch.zeros(1, 5, 32), use_cache=True, **named)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cross.layers, held, strict=True))
    assert [layer.get_seq_length() for layer in own.layers] == [2, 2]


def test_the_biases_of_positions_are_in_the_first_block_alone() -> None:
    for stack in stacks(built("t5")):
        assert bias_table(stack.block[0]).weight.shape == (32, 4)
        assert not hasattr(stack.block[1].layer[0].SelfAttention, "relative_attention_bias")
        assert not stack.block[1].layer[0].SelfAttention.has_relative_attention_bias


def test_a_block_that_listens_takes_hidden_states_and_no_mask() -> None:
    encoder, _ = stacks(built("whisper"))
    hidden: Any = torch.randn(1, 10, 32)
    out = encoder.layers[0](hidden, None)
    assert (out[0] if isinstance(out, tuple) else out).shape == hidden.shape


def test_features_are_of_thirty_seconds_however_short_the_sound() -> None:
    found = WhisperFeatureExtractor(feature_size=80)(
        torch.zeros(1600).numpy(), sampling_rate=16000, return_tensors="np"
    )
    assert found["input_features"].shape == (1, 80, 3000)
