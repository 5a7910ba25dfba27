"""What a hop signs: for 32 positions of a session, what it was given and what it made of it.

A receipt stands on the one before it, so those of a session are a chain. Everything that a hop could later
want to have been otherwise is under its signature: the session, the nonce of whoever asked, its place and its
blocks, the model, the numerics and the codec. Two receipts of one signer about the same window, asked for
with the same nonce, that say different things are proof against it: an honest hop signs each once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta, Struct

from shoal.errors import RemoteProtocolError
from shoal.trust.rows import EMPTY, HASH, RowLog, windows
from shoal.types import NUMERICS_PATTERN, Codec, PeerId
from shoal.wire.messages import SignedWindow

CONTEXT = b"shoal receipt 1\n"

Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
Hash = Annotated[bytes, Meta(min_length=HASH, max_length=HASH)]
Sign = Callable[[bytes], bytes]
VerifySignature = Callable[[PeerId, bytes, bytes], bool]


class Work(Struct, frozen=True, array_like=True):
    """What all receipts of one session at one hop have in common."""

    session: Id
    nonce: Id
    """Of whoever asked for them: no hop can have signed them before."""
    opening: Id
    """The hop's own, new with each session that it opens: so nobody can have it sign one session twice."""
    hop: Annotated[int, Meta(ge=0, le=256)]
    start: Annotated[int, Meta(ge=0, le=1 << 14)]
    end: Annotated[int, Meta(ge=1, le=1 << 14)]
    digest: Annotated[str, Meta(min_length=1, max_length=128)]
    numerics: Annotated[str, Meta(pattern=NUMERICS_PATTERN, max_length=64)]
    codec: Codec


class Receipt(Struct, frozen=True, array_like=True):
    """About one window of 32 positions."""

    work: Work
    window: Annotated[int, Meta(ge=0, le=1 << 17)]
    tokens: Annotated[int, Meta(ge=1, le=1 << 22)]
    """Of the session, when the receipt was asked for: in the last window, where the rows end."""
    sent: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
    """The positions of which a row came out, as bits, the first one lowest: the last hop sends on only what
    the client wants."""
    came: Hash
    """The Merkle root over the rows that came."""
    went: Hash
    """The same over those that came out."""
    before: Hash
    """The hash of the receipt before this one; zeros in the first."""

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is over."""
        return CONTEXT + _encoder.encode(self)

    @property
    def hash(self) -> bytes:
        """By which the next receipt refers to this one."""
        return blake3(self.signed).digest()


CounterSign = Callable[[Receipt], bytes]
_encoder = msgspec.msgpack.Encoder()


def sign_windows(
    work: Work,
    tokens: int,
    came: RowLog,
    went: RowLog,
    sign: Sign,
    countersign: CounterSign = lambda receipt: b"",
) -> list[SignedWindow]:
    """The receipts of the first ``tokens`` positions, without what they have in common.

    Args:
        came: what the hop was given.
        went: what it made of that.
        countersign: for a contract to read, by the delegate of a node that has staked.
    """
    made = unsigned_receipts(work, tokens, came, went)
    return [SignedWindow(one.sent, one.came, one.went, sign(one.signed), countersign(one)) for one in made]


def unsigned_receipts(work: Work, tokens: int, came: RowLog, went: RowLog) -> list[Receipt]:
    """The receipts that :func:`sign_windows` signs."""
    found: list[Receipt] = []
    for number in range(windows(tokens)):
        _, into = came.window(number)
        sent, out = went.window(number)
        before = found[-1].hash if found else EMPTY
        found.append(Receipt(work, number, tokens, sent, into, out, before))
    return found


def whole_receipts(work: Work, tokens: int, given: Sequence[SignedWindow]) -> list[Receipt]:
    """The receipts that a hop has signed, each on the one before it, as they are verified."""
    found: list[Receipt] = []
    for number, one in enumerate(given):
        before = found[-1].hash if found else EMPTY
        found.append(Receipt(work, number, tokens, one.sent, one.came, one.went, before))
    return found


def first_unsigned(
    signer: PeerId, receipts: Sequence[Receipt], given: Sequence[SignedWindow], verify: VerifySignature
) -> int | None:
    """The first window that ``signer`` has not signed as it stands here: changed, in another place, or of
    another session, question, hop or model. ``None``: it has signed all of them."""
    pairs = enumerate(zip(receipts, given, strict=True))
    return next((n for n, (r, one) in pairs if not verify(signer, r.signed, one.signature)), None)


def contradict(one: Receipt, other: Receipt) -> bool:
    """Whether two receipts, both signed by one peer, cannot both be honest.

    The signatures are the caller's to check. A hop signs a window once for each nonce of a session that it
    opens; so whoever asks twice gets receipts that differ in the nonce, and contradict nothing.

    Raises:
        RemoteProtocolError: they are about different windows, sessions or questions, so they cannot.
    """
    a, b = one.work, other.work
    if (a.session, a.nonce, a.opening, one.window) != (b.session, b.nonce, b.opening, other.window):
        raise RemoteProtocolError("two receipts that do not answer the same question contradict nothing")
    return one != other
