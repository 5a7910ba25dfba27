"""An operator's statement that a peer is one of its machines: signed by a key of the operator's. Pure.

Whoever runs several machines may say so, with one key for all of them. A node announces the statement that
was made for it, and what has to be independent of each other is then never two peers of one operator
(:mod:`.independence`). It is a hint, as all is that a peer says of itself: who wants to pass for two
operators announces no statement, or has two keys. What a statement cannot do is to make a peer pass for
somebody else's: the operator names the peer and the peer announces it, so both have signed.

A statement holds for a time. Times are seconds since the epoch: those of the operator's clock when it was
made, and compared with the announcer's when it announces, so that no third clock matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from shoal.errors import RemoteProtocolError, UsageError
from shoal.types import PeerId

CONTEXT = b"shoal operator 1\n"
MAX_STATEMENT = 4 << 10
"""Bytes of a statement's file."""
MAX_DAYS = 3650
EARLY_S = 3600
"""How long before it was made a statement holds: a machine's clock may be behind the operator's."""

OperatorId = Annotated[str, Meta(min_length=1, max_length=128)]
"""An operator's public key, as a peer's is written."""
EpochSeconds = Annotated[int, Meta(ge=0, le=1 << 40)]
Verify = Callable[[PeerId, bytes, bytes], bool]

_encode = msgspec.msgpack.encode


class OperatorStatement(Struct, frozen=True, array_like=True):
    """As a node announces it. Of which peer it is, the announcement says."""

    operator: OperatorId
    not_before: EpochSeconds
    not_after: EpochSeconds
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]

    def check_dates(self, at: float) -> None:
        """Raises RemoteProtocolError: it does not hold at that time."""
        if at < self.not_before:
            raise RemoteProtocolError(
                f"a statement of the operator {self.operator} that holds only {self.not_before - at:.0f} s "
                "from now"
            )
        if at > self.not_after:
            raise RemoteProtocolError(
                f"a statement of the operator {self.operator} that expired {at - self.not_after:.0f} s ago"
            )

    def check_signature(self, peer: str, verify: Verify) -> None:
        """Raises RemoteProtocolError: the operator has not signed it, or for another peer."""
        signed = _signed(self.operator, peer, self.not_before, self.not_after)
        if not verify(PeerId(self.operator), signed, self.signature):
            raise RemoteProtocolError(
                f"a statement that the operator {self.operator} has not signed for the peer {peer}"
            )


def _signed(operator: str, peer: str, not_before: int, not_after: int) -> bytes:
    return CONTEXT + _encode((operator, peer, not_before, not_after))


def state(
    operator: PeerId, peer: PeerId, now: float, days: int, sign: Callable[[bytes], bytes]
) -> OperatorStatement:
    """That a peer is the operator's for so many days.

    Args:
        sign: with the operator's key.
    """
    not_before, not_after = max(0, int(now) - EARLY_S), int(now) + days * 86400
    signature = sign(_signed(operator, peer, not_before, not_after))
    return OperatorStatement(operator, not_before, not_after, signature)


class OperatorFile(Struct, frozen=True):
    """As it is carried from the operator's key to the machine, in JSON."""

    operator: OperatorId
    peer: Annotated[str, Meta(min_length=1, max_length=128)]
    not_before: EpochSeconds
    not_after: EpochSeconds
    signature: Annotated[str, Meta(pattern="^[0-9a-f]{128}$")]
    kind: Literal["shoal operator 1"] = "shoal operator 1"

    @classmethod
    def of(cls, peer: str, statement: OperatorStatement) -> OperatorFile:
        """A statement about a peer."""
        s = statement
        return cls(s.operator, peer, s.not_before, s.not_after, s.signature.hex())

    @property
    def statement(self) -> OperatorStatement:
        """As it is announced."""
        signature = bytes.fromhex(self.signature)
        return OperatorStatement(self.operator, self.not_before, self.not_after, signature)

    def encoded(self) -> bytes:
        """As JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


_file = msgspec.json.Decoder(OperatorFile)


def read_operator_statement(data: bytes, name: str, verify: Verify) -> OperatorFile:
    """Read a statement's file, whose signature holds then.

    Raises:
        UsageError: it is none, or the operator has not signed it.
    """
    try:
        if len(data) > MAX_STATEMENT:
            raise ValueError(f"it has more than {MAX_STATEMENT} bytes")
        found = _file.decode(data)
        found.statement.check_signature(found.peer, verify)
    except (msgspec.DecodeError, ValueError, RecursionError, RemoteProtocolError) as error:
        raise UsageError(
            f"{name} is no statement of an operator: {error}",
            check="make it anew where the operator's key is, for the peer id of this machine",
            next_command="shoal operator sign PEER",
        ) from error
    return found
