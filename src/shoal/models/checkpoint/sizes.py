"""How large blocks are, from the headers alone: what fits into memory is asked before anything is loaded."""

from __future__ import annotations

import math
from collections import defaultdict

from shoal.errors import UnsupportedModel
from shoal.models.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shoal.models.checkpoint.encoder_decoders import KEPT_FLOAT, encoder_decoder
from shoal.models.checkpoint.headers import FLOATING, ITEM_SIZE, TensorEntry
from shoal.models.checkpoint.parts import NUMBERED
from shoal.models.checkpoint.published import GATE_UP, QKV, joined_grouping
from shoal.models.store.local_model import LocalModel
from shoal.types import WEIGHT_BYTES, Format


def block_bytes(model: LocalModel, format: Format) -> list[int]:
    """Bytes of each block's weights when held in ``format``, in order.

    Raises:
        BadWeights, UnknownModel: see ``open_checkpoint``.
        UnsupportedModel: the tensors' names do not tell the blocks.
    """
    return _block_bytes(open_checkpoint(model.path), model.shape.n_blocks, format)


def weight_bytes(model: LocalModel, format: Format) -> float:
    """Bytes of a weight of the blocks when held in ``format``, on average. Raises as ``block_bytes``."""
    if format != "published":
        return WEIGHT_BYTES[format]
    return sum(block_bytes(model, format)) / sum(block_bytes(model, "int8"))


def block_tensors(checkpoint: Checkpoint, n_blocks: int) -> list[list[TensorEntry]]:
    """The tensors of each block, in order.

    Raises:
        UnsupportedModel: the tensors' names do not tell the blocks.
    """
    both = encoder_decoder(checkpoint.config)
    if both is not None:
        sides = [(".encoder.", both.encoder_blocks), (".decoder.", both.decoder_blocks)]
        return [block for side, count in sides for block in _largest_list(checkpoint, count, within=side)]
    return _largest_list(checkpoint, n_blocks)


def _largest_list(checkpoint: Checkpoint, n_blocks: int, *, within: str = "") -> list[list[TensorEntry]]:
    """The tensors of each block of the largest list of so many."""
    lists: defaultdict[str, defaultdict[int, list[TensorEntry]]] = defaultdict(lambda: defaultdict(list))
    for name, entry in checkpoint.tensors.items():
        if within not in f".{name}":
            continue
        if (found := NUMBERED.match(name)) is not None:
            lists[found["list"]][int(found["index"])].append(entry)
    # Blocks beyond the last are for training or speculation (DeepSeek-V3's multi-token prediction).
    whole = [blocks for blocks in lists.values() if all(i in blocks for i in range(n_blocks))]
    if not whole:
        raise UnsupportedModel(f"{checkpoint.folder}: its tensors' names do not tell its {n_blocks} blocks")
    largest = max(
        whole, key=lambda blocks: sum(entry.size for entries in blocks.values() for entry in entries)
    )
    return [largest[i] for i in range(n_blocks)]


def _block_bytes(checkpoint: Checkpoint, n_blocks: int, format: Format) -> list[int]:
    return [
        sum(_held_bytes(checkpoint, entry, format) for entry in entries)
        for entries in block_tensors(checkpoint, n_blocks)
    ]


def _published_bytes(checkpoint: Checkpoint, entry: TensorEntry) -> int:
    """As integers, in a grouping that also fits the matrices which are held with it; else bfloat16."""
    beside = [entry]
    for layers in (QKV, GATE_UP):
        for layer in layers:
            before, found, after = entry.name.partition(layer)
            if found:
                names = [f"{before}{other}{after}" for other in layers]
                beside = [checkpoint.tensors[name] for name in names if name in checkpoint.tensors]
    grouping = joined_grouping(beside)
    a_weight = WEIGHT_BYTES["bf16"] if grouping is None else grouping.weight_bytes
    return math.ceil(math.prod(entry.shape) * a_weight)


def _held_bytes(checkpoint: Checkpoint, entry: TensorEntry, format: Format) -> int:
    # The latter: blocks of a GGUF file, and quantised.
    is_weight = entry.dtype in FLOATING or entry.dtype not in ITEM_SIZE
    if entry.name.endswith(f"{KEPT_FLOAT}.weight"):
        format = "fp32"
    if is_weight and format == "published":
        return _published_bytes(checkpoint, entry)
    return math.ceil(math.prod(entry.shape) * WEIGHT_BYTES[format]) if is_weight else entry.size
