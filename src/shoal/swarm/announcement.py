"""What a node says of itself: signed, bounded, with an expiry. Pure: the caller brings the time.

An announcement is msgpack bytes, an ed25519 signature over ``CONTEXT + bytes``, and nothing else: the
key is in the peer id. Times are seconds since the epoch by the announcer's clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, cast, get_args

import msgspec
from msgspec import Meta, Struct

from shoal.errors import RemoteProtocolError
from shoal.routing.coordinates import Coordinates, estimate_of
from shoal.routing.prices import Candidate
from shoal.trust.operator import OperatorStatement, Verify
from shoal.types import (
    NUMERICS_PATTERN,
    AdapterDigest,
    Digest,
    Format,
    ModelKind,
    ModelShape,
    Numerics,
    PeerAddress,
    PeerId,
    Span,
)

MAX_ANNOUNCEMENT = 4 << 10
"""Bytes; a usual one is 500."""
MAX_LIFETIME_S = 3600.0
CLOCK_SKEW_S = 30.0
"""How far a peer's clock may run ahead of ours."""
CONTEXT = b"shoal announcement 1\n"
ROW_ELEMENT_BYTES = 2
"""Of a hidden state on a link that matters, in bfloat16; coarser codecs take less."""
MAX_ADAPTERS = 8
"""Of one node."""
LEAST_BLOCK_S = 20e-6
"""Nobody is believed to run a block in less: who says so wants to draw every session."""
LEAST_BYTES_S = 1e3

Multiaddr = Annotated[str, Meta(max_length=256)]
Multiaddrs = Annotated[tuple[Multiaddr, ...], Meta(max_length=16)]
Coordinate = Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)]


class ServedAdapter(Struct, frozen=True, array_like=True):
    """An adapter with which a node runs its span, where a session asks for it."""

    name: Annotated[str, Meta(pattern=r"^(?![0-9A-Fa-f]{8,}$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """No word of eight or more hex digits: that is the beginning of a digest to whoever asks for it."""
    digest: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]


PRICED_TOKENS = 10**6
"""Of one block, for which prices are."""


WINDOW_TOKENS = 4096
"""Tokens through a node's blocks that it serves before it is paid; no client goes by more."""


def window_of(amount: int, blocks: int) -> int:
    """What :data:`WINDOW_TOKENS` through ``blocks`` blocks are worth at this price; at least 1."""
    return max(1, amount * blocks * WINDOW_TOKENS // PRICED_TOKENS)


class AskedPrice(Struct, frozen=True, array_like=True):
    """What a node asks for its work, and where it is paid: over payment channels of one escrow contract."""

    amount: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    """For a million tokens of one block, in the smallest unit of the chain's coin."""
    window: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    """What it serves before it is paid, at most; in the same unit."""
    payee: Annotated[bytes, Meta(min_length=20, max_length=20)]
    """The address of its wallet. The announcement's signature binds it to the peer."""
    chain_id: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    contract: Annotated[bytes, Meta(min_length=20, max_length=20)]
    """The escrow's."""

    def bounded(self, blocks: int) -> AskedPrice:
        """The same with a window that ``blocks`` are worth at the most: what a client may lose goes by it,
        so the payee's word alone does not do."""
        most = window_of(self.amount, blocks)
        return self if self.window <= most else msgspec.structs.replace(self, window=most)


class Served(Struct, frozen=True, array_like=True):
    """A model, the span of it that a node serves, and how well."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    digest: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
    n_blocks: Annotated[int, Meta(ge=1, le=1 << 14)]
    hidden_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    context: Annotated[int, Meta(ge=1, le=1 << 30)]
    vocab_size: Annotated[int, Meta(ge=1, le=1 << 26)]
    start: Annotated[int, Meta(ge=0, le=1 << 14)]
    end: Annotated[int, Meta(ge=1, le=1 << 14)]
    format: Annotated[str, Meta(pattern="^[a-z0-9]{1,16}$")]
    """As :data:`shoal.types.Format` has it, or a word of a later release (:func:`format_of`)."""
    tokens: Annotated[int, Meta(ge=0, le=1 << 40)]
    """KV tokens that all sessions together may take."""
    tokens_free: Annotated[int, Meta(ge=0, le=1 << 40)]
    sessions: Annotated[int, Meta(ge=0, le=1 << 20)]
    step_ms: Annotated[float, Meta(ge=0, le=3_600_000)]
    """Time of one decode step through the span, as the node measured it; 0 when it has not."""
    wait_ms: Annotated[float, Meta(ge=0, le=3_600_000)] = 0.0
    """How long a decode step waits at the node for its turn."""
    speed: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    """Blocks that the node computes in a second for sessions that decode together; 0 when not measured."""
    fits: Annotated[int, Meta(ge=0, le=1 << 14)] = 0
    """Blocks that it has memory to load beside those that it serves; 0: it does not move."""
    next_start: Annotated[int, Meta(ge=0, le=1 << 14)] = 0
    next_end: Annotated[int, Meta(ge=0, le=1 << 14)] = 0
    """The span that it is loading, to serve that instead; 0:0 when it stays."""
    device: Annotated[str, Meta(max_length=64)] = ""
    """What it computes on: an accelerator as its maker calls it, or ``cpu``; empty when it does not say."""
    device_memory: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    """Bytes of memory that this has in all."""
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Share of the time in which it computes: less while its machine is in use; 0 while it has paused."""
    token_joules: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """Energy that a token takes at the node; 0 when it does not know."""
    kind: ModelKind = "language"
    """Of a graph the blocks are its segments, and tokens the requests that it takes at a time."""
    numerics: Annotated[str, Meta(pattern=f"{NUMERICS_PATTERN}|^$", max_length=64)] = ""
    """By which it computes, as :class:`shoal.types.Numerics` is written; empty in announcements of nodes from
    before there was a word for it, over which no route goes."""
    attests: Annotated[str, Meta(pattern="^[a-z0-9]{0,16}$")] = ""
    """The hardware that it can show to run on, as :data:`shoal.types.TeeKind` has it; empty where none. It is
    its word: who wants to know asks it for evidence."""
    link_bytes_s: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    """Bytes a second that its long messages reached over the usual one of its ways; 0: none was timed."""
    adapters: Annotated[tuple[ServedAdapter, ...], Meta(max_length=MAX_ADAPTERS)] = ()
    trains: bool = False
    """Whether clients may tune adapters through its blocks."""
    price: AskedPrice | None = None
    """What it asks; ``None``: nothing."""
    awaited: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    """Sessions that somebody waits for: those in use, but the ones of work in the background."""

    coordinates: Annotated[tuple[Coordinate, ...], Meta(max_length=8)] = ()
    """Where it is, as :mod:`shoal.routing.coordinates` has it; empty where it has not measured any way."""
    operator: OperatorStatement | None = None
    """Whose machine it is, as its operator has signed; ``None`` where it does not say."""
    encrypted: bool = False
    """Whether it computes all of its graph, which is linear, on inputs that stay encrypted."""

    def has(self, adapter: AdapterDigest | None) -> bool:
        """Whether sessions may have that adapter here, or none."""
        return adapter is None or any(mine.digest == adapter for mine in self.adapters)

    @property
    def going(self) -> Span | None:
        """The span that it is about to serve instead."""
        return Span(self.next_start, self.next_end) if self.next_end else None

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)

    @property
    def shape(self) -> ModelShape:
        return ModelShape(
            self.model,
            Digest(self.digest),
            self.n_blocks,
            self.hidden_size,
            self.context,
            self.vocab_size,
            self.kind,
        )


class Announcement(Struct, frozen=True, array_like=True):
    """One node's word about itself. A later one (by ``sequence``) replaces an earlier one."""

    peer: Annotated[str, Meta(min_length=1, max_length=128)]
    sequence: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    issued: float
    expires: float
    libp2p: Multiaddrs
    direct: Multiaddrs
    served: Served | None
    """``None`` from a node that serves nothing now: it leaves, or it only takes part in the network."""
    agent: Annotated[str, Meta(max_length=64)] = ""
    peers: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    """Peers of its model that it has heard of, where the swarm is a large one to it (:mod:`.views.rules`); 0
    from who hears the swarm's topic alone."""

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(PeerId(self.peer), self.libp2p, self.direct)

    @property
    def leaving(self) -> bool:
        return self.served is None


class _Sealed(Struct, frozen=True, array_like=True):
    body: Annotated[bytes, Meta(max_length=MAX_ANNOUNCEMENT)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


_seal = msgspec.msgpack.Encoder()
_unseal = msgspec.msgpack.Decoder(_Sealed)
_decode = msgspec.msgpack.Decoder(Announcement)


def seal(announcement: Announcement, sign: Callable[[bytes], bytes]) -> bytes:
    """The announcement as it travels."""
    body = _seal.encode(announcement)
    return _seal.encode(_Sealed(body, sign(CONTEXT + body)))


@dataclass(frozen=True, slots=True)
class Claim:
    """An announcement as it was read: nothing shows yet that the peer has said so."""

    announcement: Announcement
    _body: bytes
    _signature: bytes

    def check_signature(self, verify: Verify) -> None:
        """Raises RemoteProtocolError: the peer that it speaks of has not signed it, or the operator that it
        names has not."""
        peer = PeerId(self.announcement.peer)
        if not verify(peer, CONTEXT + self._body, self._signature):
            raise RemoteProtocolError(f"an announcement that {peer} has not signed")
        if (statement := operator_of(self.announcement)) is not None:
            statement.check_signature(peer, verify)


def read(data: bytes) -> Claim:
    """Read an announcement and check what costs next to nothing.

    Raises:
        RemoteProtocolError: too long, not an announcement, living too long, with values that cannot be, or
            with an operator's statement that did not hold when it was issued.
    """
    if len(data) > MAX_ANNOUNCEMENT:
        raise RemoteProtocolError(
            f"an announcement of {len(data)} bytes; at most {MAX_ANNOUNCEMENT} are allowed"
        )
    try:
        sealed = _unseal.decode(data)
        announcement = _decode.decode(sealed.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not an announcement: {error}") from error
    _check_lifetime(announcement)
    _check_served(announcement.served)
    if (statement := operator_of(announcement)) is not None:
        statement.check_dates(announcement.issued)
    return Claim(announcement, sealed.body, sealed.signature)


def unseal(data: bytes, now: float, verify: Verify) -> Announcement:
    """Read an announcement and check all that can be checked without knowing earlier ones.

    Raises:
        RemoteProtocolError: as :func:`read` and :func:`check_dates`; not signed by the peer it speaks of.
    """
    claim = read(data)
    check_dates(claim.announcement, now)
    claim.check_signature(verify)
    return claim.announcement


def check_dates(announcement: Announcement, now: float) -> None:
    """Raises Misdated: by the time of day ``now``, it is over already, or comes from the future."""
    if announcement.issued > now + CLOCK_SKEW_S:
        raise Misdated(f"an announcement from {announcement.issued - now:.0f} s in the future")
    if announcement.expires <= now:
        raise Misdated(f"an announcement that expired {now - announcement.expires:.0f} s ago")


def operator_of(announcement: Announcement) -> OperatorStatement | None:
    """What a peer announces of its operator."""
    return announcement.served.operator if announcement.served is not None else None


class Misdated(RemoteProtocolError):
    """An announcement that does not hold now: it is a replay, or a clock is wrong."""


def candidate(
    peer: PeerId, served: Served, rtt_s: float | None, here: Coordinates | None = None
) -> Candidate:
    """What a peer says that it serves, as routing sees it.

    Args:
        rtt_s: the round trip to it, if we have measured one.
        here: where we are; by that a round trip is estimated which we have not measured.
    """
    if rtt_s is None and here is not None:
        rtt_s = estimate_of(here, served.coordinates)
    least = LEAST_BLOCK_S * len(served.span)
    return Candidate(
        peer,
        served.span,
        served.tokens_free,
        max(served.step_ms / 1e3, least) if served.step_ms else 0.0,
        rtt_s,
        wait_s=served.wait_ms / 1e3,
        sessions=served.sessions,
        tokens=served.tokens,
        sending_s=1 / carried_tokens_s(served),
        price=served.price.amount if served.price else 0,
    )


def carried_tokens_s(served: Served) -> float:
    """Tokens in a second whose hidden states a peer's link takes; infinite where it has timed none, or where
    it serves a graph, whose tensors have sizes of their own."""
    if not served.link_bytes_s or served.kind != "language":
        return math.inf
    return max(served.link_bytes_s, LEAST_BYTES_S) / (served.hidden_size * ROW_ELEMENT_BYTES)


def format_of(served: Served) -> Format | None:
    """How a node holds its weights; ``None`` where only a later version of ours would know."""
    return cast("Format", served.format) if served.format in get_args(Format) else None


def numerics_of(served: Served) -> Numerics | None:
    """By what a node computes; ``None`` where it does not say, or only a later version of ours would know.

    Nor is ``any`` what a node computes a language model by: it is of sessions alone. Who announces it would
    have clients do without exactness that there is.
    """
    if format_of(served) is None:
        return None
    try:
        numerics = Numerics.parse(served.numerics)
    except ValueError:
        return None
    return None if numerics.bits == "any" and served.kind == "language" else numerics


def _check_lifetime(announcement: Announcement) -> None:
    issued, expires = announcement.issued, announcement.expires
    if not (math.isfinite(issued) and math.isfinite(expires)):
        raise RemoteProtocolError("an announcement with times that are no numbers")
    if not 0 < expires - issued <= MAX_LIFETIME_S:
        raise RemoteProtocolError(f"an announcement that is to live {expires - issued:.0f} s")


def _check_served(served: Served | None) -> None:
    if served is None:
        return
    if not served.start < served.end <= served.n_blocks:
        raise RemoteProtocolError(f"a span {served.start}:{served.end} of {served.n_blocks} blocks")
    if served.next_end and not served.next_start < served.next_end <= served.n_blocks:
        raise RemoteProtocolError(f"a span to come {served.next_start}:{served.next_end}")
    if served.tokens_free > served.tokens or not all(
        map(math.isfinite, (served.step_ms, served.wait_ms, served.speed, served.link_bytes_s))
    ):
        raise RemoteProtocolError("an announcement with a capacity that cannot be")
