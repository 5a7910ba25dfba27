"""Models with an encoder and a decoder: their classes, their two stacks, and the decoder's two caches.

Relied on: the mappings below give the class of T5's and of Whisper's models. ``get_encoder`` and
``get_decoder`` are stacks that hold their blocks in one list, run them one after another through their
``__call__``, and have their last norm behind it by the names of ``STACKS``. A stack of T5 computes the biases
of relative positions in its first block, by the table of that block's ``layer[0].SelfAttention``, where its
``has_relative_attention_bias`` says so, and hands them on. A block of Whisper's encoder takes hidden states
and no mask. An ``EncoderDecoderCache`` of two caches has in the second the keys and values of what the
encoder gave, which a block computes where ``is_updated`` does not say for its index that they are there.
``WhisperFeatureExtractor`` makes log-mel features of sound, cut and padded to 30 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.contract import expect_arguments, expect_members, relied_on
from shoal.models.seam.model import PreTrainedModel

with relied_on("encoders with decoders"):
    from transformers.cache_utils import EncoderDecoderCache
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    )
    from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

    expect_members(PreTrainedModel, "get_encoder", "get_decoder")
    expect_arguments(WhisperFeatureExtractor.__init__, "feature_size", "sampling_rate", "chunk_length")

__all__ = ["STACKS", "EncoderDecoderCache", "StackNames", "WhisperFeatureExtractor", "seq2seq_class"]


@dataclass(frozen=True, slots=True)
class StackNames:
    """What a family calls the parts of its stacks."""

    norm: str
    lends_bias: bool = False
    """Whether the first block has a table of biases that all others are computed with."""


STACKS = {
    "mt5": StackNames("final_layer_norm", lends_bias=True),
    "t5": StackNames("final_layer_norm", lends_bias=True),
    "whisper": StackNames("layer_norm"),
}


def seq2seq_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that generates, of a family that is served; ``None`` for all others."""
    if config.model_type not in STACKS:
        return None
    for mapping in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING):
        if type(config) in mapping:
            found = cast(Any, mapping[type(config)])
            return cast(type[PreTrainedModel], found[0] if isinstance(found, tuple) else found)
    return None


def stacks(model: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The encoder and the decoder."""
    return cast(PreTrainedModel, model.get_encoder()), cast(PreTrainedModel, model.get_decoder())


def bias_table(block: nn.Module) -> nn.Module:
    """The table of biases of a stack's first block."""
    return cast(nn.Module, cast(Any, block).layer[0].SelfAttention.relative_attention_bias)


def bias_holder(table: nn.Module) -> nn.Module:
    """In place of a first block that is not there: its table alone, by the name that it has in the file."""
    holder, layer, attention = nn.Module(), nn.Module(), nn.Module()
    attention.relative_attention_bias = table
    layer.SelfAttention = attention
    holder.layer = nn.ModuleList([layer])
    return holder


def lend_bias(block: nn.Module, table: nn.Module) -> None:
    """Have a block compute the biases, as a stack's first one does."""
    attention = cast(Any, block).layer[0].SelfAttention
    attention.relative_attention_bias = table
    attention.has_relative_attention_bias = True
