"""A suspicion: one peer tells the swarm that another does not answer. Pure.

It is no verdict. Who is suspected and lives hears it like everybody else and refutes it with a new
announcement (SWIM, Das et al. 2002, sections 3 and 4.2: suspicion, refuted by incarnation numbers, which our
sequence numbers are). Where no refutation comes, each peer asks for itself before it takes the other for
gone. So a liar can make others speak, and evict nobody: a refutation is listened to however often its peer
has spoken, and is not counted among its words. It cannot even make them speak often: of each announced peer
so many suspicions are heard in an expiry, on a model's topic so many of all strangers together, and a word is
suspected once, and not before it has been there for a moment.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shoal.errors import RemoteProtocolError
from shoal.types import PeerId

REFUTE_SHARE = 1 / 6
"""Of an expiry: the time to refute a suspicion. Then whoever heard it asks for itself."""
GONE_SHARE = 2 / 5
"""Of an expiry: who is suspected for so long, and has not said anything new by then, is gone."""
SETTLED_SHARE = 1 / 10
"""Of an expiry: how long a word is there before it may be suspected."""
SUSPICIONS_PER_EXPIRY = 32
"""Suspicions raised by one peer that are heard in one expiry: as many neighbours may die together."""
STRANGERS = PeerId("")
"""Stands for all who are not announced here, and raise suspicions on the topic of a model."""
STRANGERS_PER_EXPIRY = 512
"""The same of all of them, when a region is lost."""


class Suspicion(Struct, frozen=True, array_like=True):
    """The peer whose newest announcement has this sequence number does not answer."""

    peer: Annotated[str, Meta(min_length=1, max_length=128)]
    sequence: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Suspicion)


def encode_suspicion(suspicion: Suspicion) -> bytes:
    """The suspicion as it travels; gossip says, and proves, who suspects."""
    return _encoder.encode(suspicion)


def decode_suspicion(data: bytes) -> Suspicion:
    """Read a suspicion.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a suspicion: {error}") from error


class SuspicionLimit:
    """How many suspicions each peer of the directory has raised in this expiry, and all others together."""

    def __init__(self, expiry_s: float) -> None:
        self._expiry_s = expiry_s
        self._since = 0.0
        self._counts = Counter[PeerId]()

    def heard(self, accuser: PeerId, now: float) -> bool:
        """Whether one more suspicion raised by this peer is listened to."""
        most = STRANGERS_PER_EXPIRY if accuser == STRANGERS else SUSPICIONS_PER_EXPIRY
        return now - self._since > self._expiry_s or self._counts[accuser] < most

    def note(self, accuser: PeerId, now: float) -> None:
        """Count one."""
        if now - self._since > self._expiry_s:
            self._since = now
            self._counts.clear()
        self._counts[accuser] += 1
