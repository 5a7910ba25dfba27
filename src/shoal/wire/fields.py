"""What messages are made of: their base, and the fields that several of them have, each within its bounds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from shoal.types import PeerAddress, PeerId

MAX_TOKENS = 1 << 22
MAX_BLOCKS = 1 << 14
MAX_PAYLOAD = 256 << 20
"""Bytes of a step's tensors: 4,096 tokens of a model 16,384 wide in float32."""

SessionBytes = Annotated[bytes, Meta(min_length=16, max_length=16)]
PeerText = Annotated[str, Meta(min_length=1, max_length=128)]
Address = Annotated[str, Meta(max_length=512)]
Text = Annotated[str, Meta(max_length=1024)]
NoiseKey = Annotated[bytes, Meta(max_length=32)]
"""A static key of the handshake, which a hop has shown to be its own machine's."""
Count = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
_Rows = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Grid = tuple[Count, _Rows, _Rows]
"""The position of a picture's first row, and how many rows it is high and wide."""
Block = Annotated[int, Meta(ge=0, le=MAX_BLOCKS)]
Microseconds = Annotated[int, Meta(ge=0, le=1 << 42)]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


# Without the garbage collector (gc=False): a message refers to nothing that could refer to it.
class TaggedMessage(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """A message's header: a tagged array."""


class NextHop(Struct, frozen=True, array_like=True, gc=False):
    """Where a hop sends what it has computed."""

    peer: PeerText
    libp2p: Annotated[tuple[Address, ...], Meta(max_length=16)] = ()
    direct: Annotated[tuple[Address, ...], Meta(max_length=16)] = ()
    noise_key: NoiseKey = b""
    """The key that the channel to it must have at its other end; empty where any will do."""

    @classmethod
    def of(cls, address: PeerAddress, noise_key: bytes = b"") -> NextHop:
        return cls(address.peer, address.libp2p[:16], address.direct[:16], noise_key)

    def address(self) -> PeerAddress:
        return PeerAddress(PeerId(self.peer), self.libp2p, self.direct)
