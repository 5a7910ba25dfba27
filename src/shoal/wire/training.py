"""Messages of tuning through remote blocks: a hop runs its frozen blocks with an adapter that the asker has.

What is asked stands by itself, so asking again, or asking another hop with the same blocks, gives the same::

    client → Train           forward, or backward, through these blocks with this adapter
    client ← Trained | NotTrained

The payload of a question is float32: hidden states ``[rows, width]``; to go backward, the gradients of what
came out, as many; then for each block, in order, and each of its layers, the adapter's two matrices
(:class:`~shoal.models.adapters.adapter.LowRank`). The answer's is what comes out ``[rows, width]``; or the
gradients of what went in, and those of the adapter's matrices, in the same order.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from shoal.wire.fields import MAX_BLOCKS, MAX_PAYLOAD, Block, Microseconds, Number, TaggedMessage, Text

MAX_SEQUENCES = 256
"""Of one question."""
MAX_ROWS = 1 << 14
"""Tokens of all its sequences."""
MAX_LAYERS = 64
"""Linear layers of a block that an adapter changes."""
LayerName = Annotated[str, Meta(min_length=1, max_length=128)]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]


class TunedLayer(Struct, frozen=True, array_like=True, gc=False):
    """A linear layer of each block that the adapter changes."""

    name: LayerName
    rows: Size
    cols: Size


class Train(TaggedMessage, frozen=True, tag="train"):
    """Ask a hop to run sequences through its blocks, each by itself."""

    number: Number
    """The answer has it too; who asks chooses it."""
    digest: Annotated[str, Meta(min_length=1, max_length=128)]
    start: Block
    end: Annotated[int, Meta(ge=1, le=MAX_BLOCKS)]
    backward: bool
    """Whether the gradients are wanted, instead of what comes out."""
    width: Size
    lengths: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=MAX_ROWS)], ...], Meta(min_length=1, max_length=MAX_SEQUENCES)
    ]
    """Tokens of each sequence."""
    list_name: LayerName
    """As an :class:`~shoal.models.adapters.adapter.Adapter` has it."""
    rank: Annotated[int, Meta(ge=1, le=64)]
    scale: Annotated[float, Meta(gt=0, le=1e6)]
    layers: Annotated[tuple[TunedLayer, ...], Meta(max_length=MAX_LAYERS)]
    """None where the blocks run as they are, and gradients are wanted of what goes in alone."""

    @property
    def rows(self) -> int:
        """Tokens of all sequences."""
        return sum(self.lengths)

    @property
    def factors(self) -> int:
        """Elements of the adapter's matrices for all the blocks."""
        return (
            max(0, self.end - self.start) * self.rank * sum(layer.rows + layer.cols for layer in self.layers)
        )

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return 4 * (self.rows * self.width * (2 if self.backward else 1) + self.factors)

    @property
    def answer_size(self) -> int:
        """Bytes of the answer's payload."""
        return 4 * (self.rows * self.width + (self.factors if self.backward else 0))


class Trained(TaggedMessage, frozen=True, tag="trained"):
    number: Number
    size: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD)]
    """Bytes of the payload."""
    compute_us: Microseconds = 0


class NotTrained(TaggedMessage, frozen=True, tag="not_trained"):
    number: Number
    code: Annotated[str, Meta(max_length=64)]
    """The ``code`` of an error in :mod:`shoal.errors`: ``busy`` where asking again later helps."""
    message: Text
    retry_after_s: Annotated[float, Meta(ge=0, le=86400)] = 1.0
