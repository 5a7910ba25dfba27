"""From a model's files to modules that run: a span of its blocks, or its ends, each proven to stand alone."""

from __future__ import annotations

import torch

from shoal.errors import UsageError
from shoal.models.build.encoder import EncoderEnds, EncoderSpan
from shoal.models.build.ends import EndsModule
from shoal.models.build.loader import TORCH_DTYPE
from shoal.models.build.self_check import check_blocks, check_embed, check_encoder, check_head
from shoal.models.build.seq2seq.load import load_both_ends, load_joined
from shoal.models.build.seq2seq.spans import JoinedSpan
from shoal.models.build.skeleton import encodes, load_hollow, read_model_config
from shoal.models.build.span import SpanModule
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.encoder_decoders import encoder_decoder
from shoal.models.seam.loading import QuantizationConfigMixin
from shoal.models.store.local_model import LocalModel
from shoal.types import DType, Kv, Span


def load_span_module(
    model: LocalModel,
    span: Span,
    dtype: DType = "float32",
    device: str = "cpu",
    packing: QuantizationConfigMixin | None = None,
    kv_as: Kv = "auto",
) -> SpanModule | JoinedSpan:
    """Build ``span`` of a model, reading only its own tensors, and prove that it stands alone.

    Args:
        packing: packs weights as they are read, one tensor at a time (:mod:`shoal.executor.packed`).
        kv_as: how sessions' keys and values are kept.

    Raises:
        UsageError: the span goes beyond the model's blocks.
        BadWeights: tensors are missing, damaged or of another shape.
        UnsupportedModel: the model is not one whose blocks can be served apart.
    """
    if encoder_decoder(open_checkpoint(model.path).config) is not None:
        return load_joined(model, span, dtype, device, packing, kv_as)
    module = build_span_module(model, span, dtype, device, packing, kv_as)
    module.prove()
    return module


def build_span_module(
    model: LocalModel,
    span: Span,
    dtype: DType = "float32",
    device: str = "cpu",
    packing: QuantizationConfigMixin | None = None,
    kv_as: Kv = "auto",
    split: int = 1,
) -> SpanModule:
    """A span that nothing is proven of yet: its caller does that, with ``prove``.

    Args:
        split: over how many processes its matrices are split; see
            :func:`shoal.models.build.loader.load_weights`.

    Raises:
        As :func:`load_span_module`; UsageError also when the model cannot be split so.
    """
    checkpoint = open_checkpoint(model.path)
    config = read_model_config(checkpoint)
    if encoder_decoder(checkpoint.config) is not None:
        raise UsageError(
            f"{model.name} has an encoder and a decoder, which are not split over processes",
            check="serve it without --parallel",
        )
    if span.end > int(config.num_hidden_layers):
        raise UsageError(
            f"span {span} goes beyond the {config.num_hidden_layers} blocks of {model.name}",
            next_command=f"shoal models show {model.name}",
        )
    hollow, blocks = load_hollow(checkpoint, config, dtype, span, packing, split)
    hollow.to(device)  # pyright: ignore[reportArgumentType]
    kind = EncoderSpan if encodes(config) else SpanModule
    return kind(
        hollow,
        blocks,
        span,
        config,
        dtype=TORCH_DTYPE[dtype],
        device=torch.device(device),
        self_check=check_encoder if encodes(config) else check_blocks,
        kv_as=kv_as,
    )


def load_ends_module(model: LocalModel, dtype: DType = "float32", device: str = "cpu") -> EndsModule:
    """Build the embedding and the head of a model, reading only their tensors. An encoder has no head.

    Of a model with an encoder and a decoder these are the decoder's, which have the encoder's beside them.

    Raises:
        As :func:`load_span_module`.
    """
    checkpoint = open_checkpoint(model.path)
    if encoder_decoder(checkpoint.config) is not None:
        return load_both_ends(model, dtype, device)
    config = read_model_config(checkpoint)
    hollow, blocks = load_hollow(checkpoint, config, dtype, None)
    hollow.to(device)  # pyright: ignore[reportArgumentType]
    kind = EncoderEnds if encodes(config) else EndsModule
    ends = kind(
        hollow,
        blocks,
        config,
        context=model.shape.context,
        dtype=TORCH_DTYPE[dtype],
        device=torch.device(device),
    )
    check_embed(ends)
    check_head(ends)
    return ends
