"""Who says that a peer is theirs: an operator's key signs the peer ids of its nodes. Pure.

That two peers have one operator is then known for certain, as nobody can sign with another's key. That they
have two is not: who has two keys, or says nothing, tells nobody. So it is a hint like addresses are, and it
only ever counts peers together.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shoal.errors import UsageError
from shoal.types import PeerId

CONTEXT = b"shoal operator 1\n"
MAX_TEXT = 512
"""Characters of a statement as it is handed on."""

Sign = Callable[[bytes], bytes]
VerifySignature = Callable[[PeerId, bytes, bytes], bool]


class OperatorStatement(Struct, frozen=True, array_like=True):
    """That a peer is an operator's, until then."""

    operator: Annotated[str, Meta(min_length=1, max_length=128)]
    """The operator's key, written as a peer id is."""
    expires: Annotated[float, Meta(ge=0, le=1e11)]
    """Seconds since the epoch."""
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]

    def holds(self, peer: PeerId, now: float, verify: VerifySignature) -> bool:
        """Whether the operator says so of this peer, still."""
        said = _signed(PeerId(self.operator), peer, self.expires)
        return now < self.expires and verify(PeerId(self.operator), said, self.signature)

    @property
    def text(self) -> str:
        """As it is handed on, on a line."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode()


_decode = msgspec.msgpack.Decoder(OperatorStatement)


def _signed(operator: PeerId, peer: PeerId, expires: float) -> bytes:
    return CONTEXT + msgspec.msgpack.encode((operator, peer, expires))


def state(operator: PeerId, sign: Sign, peer: PeerId, expires: float) -> OperatorStatement:
    """That ``peer`` is ``operator``'s.

    Args:
        sign: with the operator's key.
    """
    return OperatorStatement(operator, expires, sign(_signed(operator, peer, expires)))


def read_statement(text: str) -> OperatorStatement:
    """A statement that was handed on.

    Raises:
        UsageError: it is none.
    """
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"{len(text)} characters")
        return _decode.decode(base64.b64decode(text.strip(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise UsageError(
            f"this is no operator's statement: {error}",
            check="give the line that shoal operator sign printed, whole",
            next_command="shoal operator sign PEER",
        ) from error
