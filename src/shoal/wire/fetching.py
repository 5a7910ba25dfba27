"""Messages of weights: a model goes in pieces from who has it to who lacks it, beside sessions."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from shoal.wire.fields import Number, TaggedMessage, Text

MAX_PIECE = 1 << 20
"""Bytes of one piece of a model: a chunk of those that are hashed by themselves."""
MAX_ITEMS = 1 << 17
"""Tensors and text files of a model."""
FetchPart = Literal["offer", "manifest", "hashes", "chunk"]
"""Which items the peer has, a bit for each, the first one the lowest of its byte; the manifest; the hashes of
an item's chunks; a chunk."""


class Fetch(TaggedMessage, frozen=True, tag="fetch"):
    """Ask for a piece of a model: at most ``MAX_PIECE`` bytes."""

    number: Number
    """The answer has it too; who asks chooses it."""
    digest: Annotated[str, Meta(min_length=1, max_length=128)]
    part: FetchPart
    item: Annotated[int, Meta(ge=0, le=MAX_ITEMS)] = 0
    """By its place in the manifest; nothing to ``offer`` and ``manifest``."""
    index: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    """Which ``MAX_PIECE`` bytes of it."""


class Fetched(TaggedMessage, frozen=True, tag="fetched"):
    """The piece; its payload: the piece's bytes."""

    number: Number
    size: Annotated[int, Meta(ge=0, le=MAX_PIECE)]


class NotFetched(TaggedMessage, frozen=True, tag="not_fetched"):
    number: Number
    code: Annotated[str, Meta(max_length=64)]
    """The ``code`` of an error in :mod:`shoal.errors`: ``busy`` where asking again later helps."""
    message: Text
    retry_after_s: Annotated[float, Meta(ge=0, le=86400)] = 1.0
