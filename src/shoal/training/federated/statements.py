"""What members of a run say and sign. Each statement stands by itself, so anybody may pass it on."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shoal.errors import RemoteProtocolError
from shoal.training.federated.terms import FederatedTerms
from shoal.types import PeerAddress, PeerId
from shoal.wire.federating import MAX_MEMBERS, MAX_STATEMENT, Round, RunHash
from shoal.wire.fields import Address, Number, PeerText

CONTEXT = b"shoal federated statement 1\0"
SIGNATURE_BYTES = 64

StatementSigner = Callable[[bytes], bytes]
StatementVerifier = Callable[[PeerId, bytes, bytes], bool]
Examples = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Statement(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """The first fields of each."""

    run: RunHash
    """32 zeros in the terms themselves, of which it is the hash."""
    peer: PeerText
    """Who says it."""


class TermsStatement(_Statement, frozen=True, tag="terms"):
    """The run's terms, by its starter."""

    terms: FederatedTerms


class MemberCard(_Statement, frozen=True, tag="card"):
    """I take part, and can be reached there."""

    libp2p: Annotated[tuple[Address, ...], Meta(max_length=16)]
    direct: Annotated[tuple[Address, ...], Meta(max_length=16)]
    number: Number
    """Rises with each card of a member: the last one holds."""

    def address(self) -> PeerAddress:
        return PeerAddress(PeerId(self.peer), self.libp2p, self.direct)


class MemberStanding(_Statement, frozen=True, tag="standing"):
    """How far I am. Of two standings of a member the one with the larger number holds."""

    round: Round
    """The one that I am in; as many as the terms have when all are done."""
    state: RunHash
    """The digest of weights and momentum that this round began with."""
    ready: bool = False
    """Whether my local steps of it are done."""
    examples: Examples = 0
    """That they have seen."""
    number: Number = 0
    """Rises with each standing, over restarts too: milliseconds of the member's clock, or one more."""
    mask_key: Annotated[bytes, Meta(max_length=32)] = b""
    """Where sums are secret, the X25519 key of this round."""


class PlannedMember(Struct, frozen=True, array_like=True, gc=False):
    peer: PeerText
    examples: Examples


class RoundPlan(_Statement, frozen=True, tag="plan"):
    """Who is in a round, each the owner of the part that has its place in the list."""

    round: Round
    state: RunHash
    """What all of them begin with."""
    members: Annotated[tuple[PlannedMember, ...], Meta(min_length=2, max_length=MAX_MEMBERS)]

    @property
    def peers(self) -> list[PeerId]:
        return [PeerId(member.peer) for member in self.members]


Said = TermsStatement | MemberCard | MemberStanding | RoundPlan

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Said)


def sign_statement(statement: Said, sign: StatementSigner) -> bytes:
    """The statement as it travels: 64 bytes of signature, and what is signed."""
    body = _encoder.encode(statement)
    return sign(CONTEXT + body) + body


def read_statement(raw: bytes, verify: StatementVerifier) -> Said:
    """What a peer says.

    Raises:
        RemoteProtocolError: it is none, has a field out of its bounds, or is not signed by whom it is of.
    """
    if len(raw) > MAX_STATEMENT:
        raise RemoteProtocolError(f"a statement of {len(raw)} bytes; at most {MAX_STATEMENT} are allowed")
    try:
        statement = _decoder.decode(raw[SIGNATURE_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a statement of a federated run: {error}") from error
    if isinstance(statement, RoundPlan) and len(set(statement.peers)) != len(statement.members):
        raise RemoteProtocolError("a plan that names a member twice")
    if not verify(PeerId(statement.peer), CONTEXT + raw[SIGNATURE_BYTES:], raw[:SIGNATURE_BYTES]):
        raise RemoteProtocolError("a statement that is not signed by whom it is of")
    return statement


def statement_hash(raw: bytes) -> bytes:
    """32 bytes, by which a statement is named."""
    return sha256(raw).digest()
