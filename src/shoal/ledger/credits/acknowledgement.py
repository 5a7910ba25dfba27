"""What a client signs for who served it: so much work in all, ever. The newest is worth all before it.

Work is counted in tokens times blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shoal.errors import RemoteProtocolError
from shoal.types import PeerId

CONTEXT = b"shoal acknowledgement 1\n"
MAX_UNITS = 1 << 60
MAX_SHOWN = 16
"""Acknowledgements that one asker shows: each costs a check of 0.1 ms."""

PeerName = Annotated[str, Meta(min_length=1, max_length=128)]
SignBytes = Callable[[bytes], bytes]
CheckSignature = Callable[[PeerId, bytes, bytes], bool]


class Acknowledgement(Struct, frozen=True, array_like=True):
    """``debtor`` was served ``units`` by ``creditor``."""

    debtor: PeerName
    creditor: PeerName
    units: Annotated[int, Meta(ge=1, le=MAX_UNITS)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]

    @property
    def signed(self) -> bytes:
        """What the debtor's signature is over."""
        return _signed(self.debtor, self.creditor, self.units)


def acknowledge(sign: SignBytes, debtor: PeerId, creditor: PeerId, units: int) -> Acknowledgement:
    """Say to whom we owe how much in all."""
    return Acknowledgement(debtor, creditor, units, sign(_signed(debtor, creditor, units)))


def check_acknowledgements(
    shown: tuple[Acknowledgement, ...], creditor: PeerId, verify: CheckSignature
) -> dict[PeerId, int]:
    """By debtor, what they have signed for ``creditor``, who shows it.

    Raises:
        RemoteProtocolError: it shows too many, one of another creditor, of itself, or that nobody signed.
    """
    if len(shown) > MAX_SHOWN:
        raise RemoteProtocolError(f"{len(shown)} acknowledgements, of which {MAX_SHOWN} are read")
    found: dict[PeerId, int] = {}
    for one in shown:
        debtor = PeerId(one.debtor)
        if one.creditor != creditor or debtor == creditor:
            raise RemoteProtocolError("an acknowledgement of somebody else's work")
        if not verify(debtor, one.signed, one.signature):
            raise RemoteProtocolError("an acknowledgement that its debtor has not signed")
        found[debtor] = max(one.units, found.get(debtor, 0))
    return found


def _signed(debtor: str, creditor: str, units: int) -> bytes:
    return CONTEXT + msgspec.msgpack.encode((debtor, creditor, units))
