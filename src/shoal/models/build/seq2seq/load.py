"""From the files of a model with an encoder and a decoder to spans of either side, and to their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from shoal.errors import UnsupportedModel, UsageError
from shoal.models.build.blocks import Blocks, find_blocks
from shoal.models.build.loader import TORCH_DTYPE, load_weights
from shoal.models.build.placeholders import Door, Passthrough
from shoal.models.build.self_check import check_blocks, check_embed, check_encoder, check_head
from shoal.models.build.seq2seq.ends import AudioSource, TargetEnds, TextSource, check_hear
from shoal.models.build.seq2seq.spans import LENT_BIAS, DecoderPart, EncoderPart, JoinedSpan, sides_of
from shoal.models.build.skeleton import keep_ties, read_model_config
from shoal.models.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shoal.models.checkpoint.encoder_decoders import EncoderDecoder
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.loading import QuantizationConfigMixin, mark_filled, prepared_class
from shoal.models.seam.model import PreTrainedModel
from shoal.models.seam.seq2seq import STACKS, bias_holder, bias_table, seq2seq_class, stacks
from shoal.models.store.local_model import LocalModel
from shoal.types import DType, Kv, Span

BIAS = "0"
"""The name of a first block that is not there, but for its table of biases."""


class _Side:
    """A stack of a model, and which of its blocks stay in it.

    Args:
        keep: counted from the stack's first block; ``None`` for none.
        doors: whether doors take the blocks' places.
    """

    def __init__(self, model: PreTrainedModel, blocks: Blocks, keep: Span | None, doors: bool) -> None:
        self.model = model
        self.blocks = blocks
        self.keep = keep
        self._whole = list(blocks.modules)
        self._doors = [Door(block) for block in self._whole[:2]] if doors else []
        self._lends = False

    def empty(self, *, lends: bool) -> None:
        """Before weights are loaded: leave the blocks that are kept, and the table that all of them need."""
        left = nn.ModuleList()
        if self.keep is not None and self.keep.start and lends:
            left.add_module(BIAS, bias_holder(bias_table(self._whole[0])))
        for index in _indexes(self.keep):
            left.add_module(str(index), self._whole[index])  # as the checkpoint calls it
        setattr(self.model, self.blocks.name, left)
        self._lends = lends

    def fill(self) -> None:
        """After that: the blocks alone, the first of which has the table."""
        if self._doors:
            self.blocks.replace(nn.ModuleList(self._doors), 0)
        if self.keep is None:
            return
        loaded = dict(self.blocks.modules.named_children())
        if self._lends:
            self.model.add_module(LENT_BIAS, bias_table(loaded[BIAS]))
        kept = nn.ModuleList([loaded[str(index)] for index in _indexes(self.keep)])
        self.blocks.replace(kept, self.keep.start)


def _indexes(span: Span | None) -> range:
    return range(0) if span is None else range(span.start, span.end)


def load_joined(
    model: LocalModel,
    span: Span,
    dtype: DType,
    device: str,
    packing: QuantizationConfigMixin | None,
    kv_as: Kv,
) -> JoinedSpan:
    """Build ``span`` of a model, reading only its own tensors, and prove that it stands alone.

    Raises:
        As :func:`shoal.models.build.load.load_span_module`.
    """
    checkpoint = open_checkpoint(model.path)
    config = read_model_config(checkpoint)
    shape = sides_of(config)
    if span.end > shape.n_blocks:
        raise UsageError(
            f"span {span} goes beyond the {shape.n_blocks} blocks of {model.name}",
            next_command=f"shoal models show {model.name}",
        )
    hollow, encoder, decoder = _load(checkpoint, config, shape, dtype, span, packing)
    hollow.to(device)  # pyright: ignore[reportArgumentType]
    options: dict[str, Any] = {"dtype": TORCH_DTYPE[dtype], "device": torch.device(device), "kv_as": kv_as}
    first = last = None
    if encoder.keep is not None:
        first = EncoderPart(
            encoder.model, encoder.blocks, encoder.keep, config, self_check=check_encoder, **options
        )
        first.prove()
    if decoder.keep is not None:
        last = DecoderPart(
            decoder.model, decoder.blocks, decoder.keep, config, self_check=check_blocks, **options
        )
        last.prove()
    return JoinedSpan(span, shape, first, last)


def load_both_ends(model: LocalModel, dtype: DType = "float32", device: str = "cpu") -> TargetEnds:
    """Build what is before and behind the blocks of both sides, reading only its tensors.

    Raises:
        As :func:`shoal.models.build.load.load_ends_module`.
    """
    checkpoint = open_checkpoint(model.path)
    config = read_model_config(checkpoint)
    shape = sides_of(config)
    hollow, encoder, decoder = _load(checkpoint, config, shape, dtype, None)
    hollow.to(device)  # pyright: ignore[reportArgumentType]
    options: dict[str, Any] = {"dtype": TORCH_DTYPE[dtype], "device": torch.device(device)}
    context = shape.context if shape.input == "text" else shape.target
    ends = TargetEnds(hollow, decoder.model, decoder.blocks, config, context=context, **options)
    check_embed(ends)
    check_head(ends)
    kind = TextSource if shape.input == "text" else AudioSource
    ends.source = kind(encoder.model, encoder.blocks, config, context=shape.context, **options)
    if isinstance(ends.source, AudioSource):
        check_hear(ends.source, int(config.num_mel_bins), shape.source)
    else:
        check_embed(ends.source)
        check_head(ends.source)
    return ends


def _load(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    shape: EncoderDecoder,
    dtype: DType,
    keep: Span | None,
    packing: QuantizationConfigMixin | None = None,
) -> tuple[PreTrainedModel, _Side, _Side]:
    """The model with the weights of blocks ``keep`` alone, or of everything but blocks where that is None.

    Raises:
        UnsupportedModel: transformers has no such model that generates, or its blocks are not found.
        BadWeights: tensors that the part needs are missing or have another shape.
    """
    found = seq2seq_class(config)
    if found is None:
        raise UnsupportedModel(f"a {config.model_type} model does not generate text")
    lends = STACKS[config.model_type].lends_bias
    sides: list[_Side] = []

    def hollow(model: PreTrainedModel) -> None:
        for stack, whole in zip(stacks(model), (shape.encoder, shape.decoder), strict=True):
            mine = None if keep is None else _within(keep, whole)
            side = _Side(stack, find_blocks(stack, len(whole)), mine, keep is None)
            side.empty(lends=lends)
            sides.append(side)
        if keep is not None:
            _take_out_weights(model, [side.model for side in sides])
        keep_ties(model)

    model = load_weights(prepared_class(found, hollow), checkpoint, config, dtype, packing)
    encoder, decoder = sides
    encoder.fill()
    decoder.fill()
    return model, encoder, decoder


def _within(keep: Span, side: Span) -> Span | None:
    """The part of ``keep`` that is on one side, counted from its first block."""
    start, end = max(keep.start, side.start), min(keep.end, side.end)
    return Span(start - side.start, end - side.start) if start < end else None


def _take_out_weights(owner: nn.Module, kept: Sequence[nn.Module]) -> None:
    """Replace all that has weights of its own beside the blocks of two stacks."""
    mark_filled(owner)  # else transformers would look for what is replaced
    for name, child in list(owner.named_children()):
        if any(stack in child.modules() for stack in kept):
            _take_out_weights(child, kept)
        elif child.state_dict() and not (owner in kept and isinstance(child, nn.ModuleList)):
            setattr(owner, name, Passthrough())
