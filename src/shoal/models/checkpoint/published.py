"""Which matrices of a checkpoint were published as integers in groups, and these integers.

What is no such matrix is held as bfloat16 in the format ``published``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from shoal.models.checkpoint.grouped import GroupedWeights, Grouping, join_groupings
from shoal.models.checkpoint.headers import ITEM_SIZE, TensorEntry
from shoal.models.quantized.entry import QuantizedEntry
from shoal.models.quantized.groups import quantized_grouping, read_quantized_groups

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
"""Linear layers that are computed, and held, as one."""


def grouping_of(entry: TensorEntry) -> Grouping | None:
    """How :func:`read_grouped` gives a tensor; ``None`` where it does not."""
    if entry.dtype in ITEM_SIZE:
        return None
    if isinstance(entry, QuantizedEntry):
        return quantized_grouping(entry)
    from shoal.models.gguf.groups import gguf_grouping  # noqa: PLC0415 - the gguf package, which few need

    return gguf_grouping(entry)


def read_grouped(entry: TensorEntry) -> GroupedWeights:
    """The integers of a matrix that has a grouping.

    Raises:
        BadWeights: its file cannot be read, or became shorter.
    """
    if isinstance(entry, QuantizedEntry):
        return read_quantized_groups(entry)
    from shoal.models.gguf.groups import read_groups  # noqa: PLC0415 - the gguf package, which few need

    return read_groups(entry)


def joined_grouping(entries: Sequence[TensorEntry]) -> Grouping | None:
    """How matrices are held one below the other; ``None``: one of them is no integers, so none is held so."""
    found = [grouping_of(entry) for entry in entries]
    known = [grouping for grouping in found if grouping is not None]
    return join_groupings(known) if len(known) == len(found) else None


def is_mostly_grouped(entries: Iterable[TensorEntry]) -> bool:
    """Whether most bytes of a checkpoint are those of matrices in groups."""
    sizes: Counter[bool] = Counter()
    for entry in entries:
        sizes[grouping_of(entry) is not None] += entry.size
    return sizes[True] > sizes[False]
