"""What a client says to hops where an answer begins and ends, so that whoever traces it finds their part."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shoal.wire.fields import SessionBytes, TaggedMessage


class TraceTurn(TaggedMessage, frozen=True, tag="turn"):
    """The steps from here on work for this span of this trace (:mod:`shoal.metrics.tracing`)."""

    session: SessionBytes
    trace: Annotated[bytes, Meta(max_length=16)] = b""
    """16 bytes; empty: the answer is complete, and the steps from here on are for nothing that is traced."""
    span: Annotated[bytes, Meta(max_length=8)] = b""
    sampled: bool = False
    """Whether hops that export spans are to export theirs."""
