"""What messages are made of: their base, and the fields that several of them have, each within its bounds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

MAX_TOKENS = 1 << 22
MAX_BLOCKS = 1 << 14

SessionBytes = Annotated[bytes, Meta(min_length=16, max_length=16)]
PeerText = Annotated[str, Meta(min_length=1, max_length=128)]
Address = Annotated[str, Meta(max_length=512)]
Text = Annotated[str, Meta(max_length=1024)]
NoiseKey = Annotated[bytes, Meta(max_length=32)]
"""A static key of the handshake, which a hop has shown to be its own machine's."""
Count = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Block = Annotated[int, Meta(ge=0, le=MAX_BLOCKS)]
Microseconds = Annotated[int, Meta(ge=0, le=1 << 42)]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


# Without the garbage collector (gc=False): a message refers to nothing that could refer to it.
class TaggedMessage(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """A message's header: a tagged array."""
