"""Two directories compared: what one tells the other so that it lacks nothing and keeps no ghosts. Pure.

The asker names, for one part of all peers, whom it knows and by which word; 20 bytes a peer. The answer
brings the words that it lacks, and names those whom the teller has found, or has reason to think, gone. Those
words are signed; that somebody is gone is only said, so the asker looks for itself before it believes it
(anti-entropy, Demers et al. 1987). Who has gone lately is named whatever the part: news of a death that
gossip lost must not wait until its part has its turn.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from shoal.errors import RemoteProtocolError
from shoal.swarm.announcement import MAX_ANNOUNCEMENT
from shoal.types import PeerId

MAX_PEERS = 4096
"""Peers that a directory holds, and that one question or answer may name."""

MAX_MODELS = 16
"""That one question may name."""

Key = Annotated[bytes, Meta(min_length=8, max_length=8)]
ModelKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""The digest of a model, as bytes."""
Sequence = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
SealedAnnouncement = Annotated[bytes, Meta(max_length=MAX_ANNOUNCEMENT)]

_Message = TypeVar("_Message")


def key_of(peer: PeerId) -> bytes:
    """A peer's name in a comparison: 8 bytes of its hash."""
    return hashlib.sha256(peer.encode()).digest()[:8]


class DirectoryPart(Struct, frozen=True, array_like=True):
    """One of ``of`` parts of all peers."""

    of: Annotated[int, Meta(ge=1, le=MAX_PEERS)] = 1
    index: Annotated[int, Meta(ge=0, lt=MAX_PEERS)] = 0

    def has(self, key: bytes) -> bool:
        return int.from_bytes(key, "big") % self.of == self.index


EVERYONE = DirectoryPart()


class DirectoryQuery(Struct, frozen=True, array_like=True):
    """Of this part, I hold these."""

    part: DirectoryPart
    held: Annotated[dict[Key, Sequence], Meta(max_length=MAX_PEERS)]
    models: Annotated[tuple[ModelKey, ...], Meta(max_length=MAX_MODELS)] = ()
    """Of the peers of these models alone; of all where there are none. Releases without
    partial views tell of all."""
    most: Annotated[int, Meta(ge=0, le=MAX_PEERS)] = MAX_PEERS
    """Words that are wanted; which ones, chance decides."""


class DirectoryDifference(Struct, frozen=True, array_like=True):
    """What the asker lacks, and who is gone or suspected by what the teller knows, with their last words."""

    news: Annotated[list[SealedAnnouncement], Meta(max_length=MAX_PEERS)]
    gone: Annotated[dict[Key, Sequence], Meta(max_length=2 * MAX_PEERS)]
    wall: float
    """Seconds since the epoch by the teller's clock."""


_encoder = msgspec.msgpack.Encoder()
_query = msgspec.msgpack.Decoder(DirectoryQuery)
_difference = msgspec.msgpack.Decoder(DirectoryDifference)


def encode(message: DirectoryQuery | DirectoryDifference) -> bytes:
    """The message as it travels."""
    return _encoder.encode(message)


def read_query(data: bytes) -> DirectoryQuery:
    """Raises RemoteProtocolError: it is no question, or a value is out of its bounds."""
    return _read(_query, data)


def read_difference(data: bytes) -> DirectoryDifference:
    """Raises RemoteProtocolError: it is no answer to a question, or a value is out of its bounds."""
    return _read(_difference, data)


def _read(decoder: msgspec.msgpack.Decoder[_Message], data: bytes) -> _Message:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a word about a directory: {error}") from error
