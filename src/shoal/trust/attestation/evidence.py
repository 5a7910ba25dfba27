"""What a peer presents to show on which machine it runs, and what of it was said for whom.

The quote is signed by the hardware, over 64 bytes that the software there may choose. Those are a hash of the
peer, a nonce of whoever asks, the model, the numerics, and the key of the channel. So a quote cannot be shown
by another peer, a second time, for another model, or by who sits between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from shoal.errors import NotAllowed, RemoteProtocolError
from shoal.types import TeeKind
from shoal.wire.messages import MAX_EVIDENCE, NONCE_BYTES

CONTEXT = b"shoal attestation 1\n"
MAX_QUOTE = 32 << 10
"""Bytes of a quote; one has 5,000."""

RefusalReason = Literal[
    "unreadable",
    "peer",
    "nonce",
    "model",
    "numerics",
    "channel",
    "report_data",
    "signature",
    "certificates",
    "revoked",
    "expired",
    "outdated",
    "debug",
    "privilege",
    "measurement",
    "age",
]
"""Why evidence is not taken: it cannot be read, was made for something else, is not signed by the hardware's
maker, or is of a machine that the operator does not want."""


class AttestationRefused(NotAllowed):
    """What a peer presents does not show what it should."""

    def __init__(self, reason: RefusalReason, message: str, claims: Claims | None = None) -> None:
        super().__init__(
            message,
            check="compare what the node shows with your list of measurements",
            next_command="shoal peers --attested --json",
        )
        self.reason: RefusalReason = reason
        self.claims = claims
        """What the hardware has signed, where only the list does not have it."""


class Binding(Struct, frozen=True, array_like=True):
    """What the 64 bytes that the hardware signs are the hash of."""

    peer: Annotated[str, Meta(min_length=1, max_length=128)]
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    """Of whoever asks, new with each question: nobody can have had it signed before."""
    digest: Annotated[str, Meta(min_length=1, max_length=128)]
    """Of the model that is served."""
    numerics: Annotated[str, Meta(max_length=64)]
    noise_key: Annotated[bytes, Meta(max_length=32)]
    """The static key of the channel's Noise handshake: who has it is at the channel's other end."""

    @property
    def report_data(self) -> bytes:
        """64 bytes."""
        return hashlib.sha512(CONTEXT + _encoder.encode(self)).digest()


class Evidence(Struct, frozen=True, array_like=True):
    """A quote with what it is verified with."""

    kind: TeeKind
    binding: Binding
    """As the peer says; its hash must be what the hardware has signed."""
    quote: Annotated[bytes, Meta(min_length=1, max_length=MAX_QUOTE)]
    collateral: Annotated[bytes, Meta(max_length=MAX_EVIDENCE)] = b""
    """Certificates, lists of revoked ones, and what the maker says of versions. The maker has signed each, so
    the peer may bring them itself."""

    def encoded(self) -> bytes:
        """As it travels."""
        return _encoder.encode(self)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Evidence)


def read_evidence(data: bytes) -> Evidence:
    """Read what a peer has sent.

    Raises:
        RemoteProtocolError: it is too long, or no evidence.
    """
    if len(data) > MAX_EVIDENCE:
        raise RemoteProtocolError(f"evidence of {len(data)} bytes; at most {MAX_EVIDENCE} are allowed")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"no evidence: {error}") from error


def check_binding(presented: Binding, expected: Binding) -> None:
    """Refuse evidence that was made for something else than what is asked.

    Raises:
        AttestationRefused: it was; says for what.
    """
    differing: list[tuple[RefusalReason, bool, str]] = [
        ("peer", presented.peer == expected.peer, f"it is of the peer {presented.peer[:64]!r}"),
        ("nonce", presented.nonce == expected.nonce, "it answers another question: it is a replay"),
        ("model", presented.digest == expected.digest, f"it is for the model {presented.digest[:23]}…"),
        ("numerics", presented.numerics == expected.numerics, f"it is for {presented.numerics[:64]!r}"),
        (
            "channel",
            bool(expected.noise_key) and presented.noise_key == expected.noise_key,
            "the channel does not end in the machine that it is of",
        ),
    ]
    for reason, same, what in differing:
        if not same:
            raise AttestationRefused(reason, f"the attestation of {expected.peer} is not for us: {what}")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a quote says, once the signatures over it hold."""

    kind: TeeKind
    measurements: Mapping[str, str]
    """Hashes of what was started, in hex, by the names that the maker has for them."""
    report_data: bytes
    tcb: str
    """What the maker says of the versions of firmware and microcode, or those versions."""
    levels: Mapping[str, int]
    """Versions by the component, where the maker leaves it to us to judge them."""
    advisories: tuple[str, ...] = ()
    """Security advisories of the maker that concern the machine."""
    expires: float = float("inf")
    """Until when what it was verified with holds, in seconds since the epoch."""
