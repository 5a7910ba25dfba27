"""Messages of linear graphs whose inputs stay encrypted: a node computes on ciphertexts, and has no key.

They go over a session on all segments of a graph, as :class:`~shoal.wire.messages.Infer` does, and asking
again gives the same::

    client → InferEncrypted      the columns of some rows, each a ciphertext
    client ← InferredEncrypted | Failed
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shoal.wire.fields import Microseconds, Number, SessionBytes, TaggedMessage

MAX_CIPHERTEXTS = 513
"""Of one message: a column each, and one of ones."""
MAX_CIPHERTEXT = 260 << 10
"""Bytes of one."""

CiphertextSizes = Annotated[
    tuple[Annotated[int, Meta(ge=1, le=MAX_CIPHERTEXT)], ...],
    Meta(min_length=1, max_length=MAX_CIPHERTEXTS),
]


class InferEncrypted(TaggedMessage, frozen=True, tag="infer_encrypted"):
    """Ask for what a linear graph makes of rows that are encrypted; its payload: the ciphertexts, one behind
    the other."""

    session: SessionBytes
    number: Number
    """The answer has it too; who asks chooses it."""
    parameters: Annotated[str, Meta(min_length=1, max_length=64)]
    """The name of the set by which they are encrypted."""
    sizes: CiphertextSizes

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return sum(self.sizes)


class InferredEncrypted(TaggedMessage, frozen=True, tag="inferred_encrypted"):
    """The scores, encrypted; its payload: a ciphertext for each."""

    session: SessionBytes
    number: Number
    sizes: CiphertextSizes
    exponent: Annotated[int, Meta(ge=-256, le=256)]
    """They are to be multiplied by two to this power: that much larger than 1 the weights are together."""
    compute_us: Microseconds = 0
    waiting_us: Microseconds = 0

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return sum(self.sizes)
