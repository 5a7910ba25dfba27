"""Every message between two peers, typed and size-checked.

A message is a msgpack header (one of the structs below, as a tagged array) and behind it, for a step or a
graph's request, the raw bytes of the tensors that it declares; for a piece of a model, its bytes. Arrays may
grow at their end: a field added later has a default.

The life of a session, seen from a hop::

    client → Open            take part in this session?
    client ← Opened | Refused
    previous → Step → next   hidden states in, hidden states out; the last hop's next is the client
    client ← Failed          this step, or the whole session, is over
    client → Reroute         another hop has taken a neighbour's place; send it again what it needs
    client ← Rerouted
    client → Locate          how far has the session come here?
    client ← Located
    client → GetReceipts     sign what you have done
    client ← Receipts
    client → Reveal          show rows that you have sent on
    client ← Revealed
    client → Prove           show that a block's products are those of its weights
    client ← Proved
    client → Close           free the KV (so does losing the client's channel)

A graph's segments keep nothing, so a session on them is asked again and again, and each time answered::

    client → Open            may I ask for these segments?
    client ← Opened | Refused
    client → Infer           the tensors that they take
    client ← Inferred | Failed
    client → Close

Weights go beside sessions, from who has them to who lacks them::

    peer → Fetch             a piece of a model
    peer ← Fetched | NotFetched

So does what shows on which machine a peer runs::

    peer → Attest            show what you run on
    peer ← Attested

Those of graphs, tuning, proofs, traces, payment and federated rounds are in modules of their own beside this
one, names of kept KV in :mod:`shoal.wire.cache_names`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shoal.errors import RemoteProtocolError
from shoal.types import NUMERICS_PATTERN, Codec, Format
from shoal.wire.cache_names import CacheNames, KeepCache
from shoal.wire.federating import FederatingMessage, StateGiven, UpdatePart
from shoal.wire.fetching import Fetch, Fetched, NotFetched
from shoal.wire.fields import (
    MAX_BLOCKS,
    MAX_PAYLOAD,
    MAX_TOKENS,
    Block,
    Count,
    Grid,
    Microseconds,
    NextHop,
    NoiseKey,
    Number,
    PeerText,
    SessionBytes,
    TaggedMessage,
    Text,
)
from shoal.wire.inferring import Infer, InferEncrypted, Inferred, InferredEncrypted
from shoal.wire.paying import PayingMessage, PaymentOffer, ShownCredit
from shoal.wire.payload import MAX_TENSORS, TensorSpec, declared_bytes
from shoal.wire.proofs import Prove, Proved
from shoal.wire.training import MAX_ROWS, NotTrained, Train, Trained
from shoal.wire.turn import TraceTurn

NEWEST_VERSION = 9
"""Of the protocol, as this release speaks it: :mod:`shoal.wire.versions`."""
OLDEST_VERSION = 7
"""What this release still speaks with others."""
AGENT = "shoal/0.2"
"""This program, as it names itself to others."""

MAX_HEADER = 32 << 10
"""Bytes of a header; one is 200 bytes long on the way of a token."""
MAX_HOPS = 256

MAX_STRETCHES = 256
"""Of one step: pictures of a prompt."""
MAX_WINDOWS = 128
"""Receipts of one message: 18 KB."""
MAX_REVEALED = 1 << 20
"""Bytes of rows in one message, but for a single row that is longer."""
MAX_EVIDENCE = 128 << 10
"""Bytes of what shows a peer's machine; Intel's has 25,000."""
NONCE_BYTES = 32
"""Of a question for it."""


class Hello(TaggedMessage, frozen=True, tag="hello"):
    """The first message each way."""

    oldest: Annotated[int, Meta(ge=0, le=1 << 16)]
    """The first version that the sender speaks. Before 9 it was the only one, the same at both ends."""
    agent: Annotated[str, Meta(max_length=128)] = ""
    channel: Annotated[bytes, Meta(max_length=16)] = b""
    """How this end names the channel, so that it can go on over another pipe; empty where it cannot."""
    newest: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    """The last one; 0 from releases before there was a choice."""


class Open(TaggedMessage, frozen=True, tag="open"):
    """Ask a hop to take part in a session that may grow to ``tokens`` tokens.

    Its KV is reserved as steps need it. Where others want the room, a hop may end the session at any time
    with a ``Failed`` whose code is ``busy``.
    """

    session: SessionBytes
    digest: Annotated[str, Meta(min_length=1, max_length=128)]
    format: Format
    start: Block
    end: Annotated[int, Meta(ge=1, le=MAX_BLOCKS)]
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    hop: Annotated[int, Meta(ge=0, le=MAX_HOPS)]
    """The hop's place in the route, from 0."""
    previous: PeerText | None
    """Who sends the steps; ``None`` when it is the client itself."""
    next: NextHop | None
    """Who gets the results; ``None`` when it is the client itself."""
    numerics: Annotated[str, Meta(pattern=NUMERICS_PATTERN, max_length=64)]
    """By which every hop computes the session, as :class:`shoal.types.Numerics` is written."""
    previous_key: NoiseKey = b""
    """As ``next.noise_key``, of the channel over which steps come; empty where they come from the client."""
    adapter: Annotated[str, Meta(max_length=128)] = ""
    """The digest of the adapter with which the blocks are to be run; empty: as they are."""
    caches: CacheNames = ()
    """By which the hop may have kept the session's beginning."""
    credit: ShownCredit | None = None
    payment: PaymentOffer | None = None
    background: bool = False
    """Whether nobody waits for what comes of it, so that it rests while others are waited for."""


class Opened(TaggedMessage, frozen=True, tag="opened"):
    session: SessionBytes
    tokens_free: Count
    """Tokens of KV that a newcomer would be let have here."""
    codec: Codec = "float32"
    """What the way onward from here asks for. The client chooses for the whole session."""
    rolls_back: bool = False
    """Whether the session's cache can return to any earlier position without being built again."""
    opening: SessionBytes = bytes(16)
    """In all receipts of this session: new with each that the hop opens."""
    held: Count = 0
    """Tokens of ``caches`` that the hop has: the first step begins there at the latest."""
    held_codec: Codec = "float32"
    """In which their rows came, as all that follow must."""
    credits: bool = False
    """Whether the hop keeps credits, and so takes an ``Acknowledged``."""


class Refused(TaggedMessage, frozen=True, tag="refused"):
    session: SessionBytes
    code: Annotated[str, Meta(max_length=64)]
    """The ``code`` of an error in :mod:`shoal.errors`."""
    message: Text
    retry_after_s: Annotated[float, Meta(ge=0, le=86400)] = 1.0
    tokens_free: Count = 0
    gone: PeerText | None = None
    """The next hop, when it is that one who cannot be reached."""


Stretch = tuple[Count, Count]
"""Positions from the first up to the second."""


class HopTime(Struct, frozen=True, array_like=True, gc=False):
    """Where a step's time went at one hop, by that hop's own clock."""

    hop: Annotated[int, Meta(ge=0, le=MAX_HOPS)]
    compute_us: Microseconds
    waiting_us: Microseconds


class Step(TaggedMessage, frozen=True, tag="step"):
    """One forward of ``tokens`` tokens from ``position`` on; its payload: the tensors that it declares.

    Steps are idempotent by position: a hop whose cache is longer rolls back to ``position`` first.
    """

    session: SessionBytes
    number: Number
    """Counts the client's steps; a result carries the number of the step that it answers."""
    position: Count
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    """Tokens that this step adds to the cache."""
    wanted: Count
    """Trailing positions whose hidden states the client wants back: 0, 1 or up to ``tokens``."""
    tensors: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=MAX_TENSORS)]
    """What the payload consists of; a hop sends on in the codec in which it was sent.

    Hidden states have ``tokens`` rows on the way, and ``wanted`` on the last hop's way to the client.
    """
    times: Annotated[tuple[HopTime, ...], Meta(max_length=MAX_HOPS)] = ()
    hops_left: Annotated[int, Meta(ge=0, le=MAX_HOPS)] | None = None
    """Hops that it still goes to after this one; ``None``: to the end of the ring.

    Such a step only fills caches that were lost: nothing of it comes back to the client.
    """
    sequence_length: Count = 0
    """Tokens of the sequence that the step is a piece of, by which some models' rotary frequencies go; 0: it
    ends with the step."""
    mutual: Annotated[tuple[Stretch, ...], Meta(max_length=MAX_STRETCHES)] = ()
    """Which of its tokens also see those behind them: each of a stretch sees the whole of it, as Gemma 3's
    rows of a picture do."""
    grids: Annotated[tuple[Grid, ...], Meta(max_length=MAX_STRETCHES)] = ()
    """All pictures that begin before its end, where rows turn by where they are in one, as Qwen-VL's do."""

    @property
    def hidden(self) -> TensorSpec:
        """Its hidden states: the whole payload, as long as there is no other tensor."""
        return self.tensors[0]


class Failed(TaggedMessage, frozen=True, tag="failed"):
    """A hop tells the client that a step, or with ``number=None`` the session, came to nothing."""

    session: SessionBytes
    number: Number | None
    hop: Annotated[int, Meta(ge=0, le=MAX_HOPS)]
    code: Annotated[str, Meta(max_length=64)]
    message: Text
    gone: PeerText | None = None
    """The next hop, when the way to it is lost: the session goes on here if another takes its place."""


class Reroute(TaggedMessage, frozen=True, tag="reroute"):
    """The route of a session has changed beside this hop; its KV stays as it is."""

    session: SessionBytes
    hop: Annotated[int, Meta(ge=0, le=MAX_HOPS)]
    """The hop's place in the route now."""
    previous: PeerText | None
    next: NextHop | None
    resend: Count | None = None
    """Send the next hop again what it must have cached below this position; ``None``: it has it."""
    fills: Annotated[int, Meta(ge=1, le=MAX_HOPS)] = 1
    """Hops in a row, from the next one on, whose caches are to be filled."""
    previous_key: NoiseKey = b""


class Rerouted(TaggedMessage, frozen=True, tag="rerouted"):
    session: SessionBytes
    kept: bool
    """Whether all that was to be sent again had been kept; if not, the client must replay."""


class Locate(TaggedMessage, frozen=True, tag="locate"):
    """Ask a hop how far a session has come there: a step is late, and somebody has it."""

    session: SessionBytes


class Located(TaggedMessage, frozen=True, tag="located"):
    session: SessionBytes
    taken: Number
    """The number of the last step that has come; 0 before the first."""
    sent: Number
    """The number of the last step whose result was sent on."""


class GetReceipts(TaggedMessage, frozen=True, tag="get_receipts"):
    """Ask a hop to sign, or to commit to, what it has done for a session's first ``tokens`` positions."""

    session: SessionBytes
    nonce: SessionBytes
    """New with each question. The receipts of one question may be asked for in parts, with the same one."""
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    first: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 0
    """The window from which on they are wanted; as many come as a message may have."""
    commit: bool = False


class SignedWindow(Struct, frozen=True, array_like=True, gc=False):
    """A receipt without what it has in common with others: :mod:`shoal.trust.receipt`."""

    sent: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
    came: Annotated[bytes, Meta(min_length=32, max_length=32)]
    went: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    countersignature: Annotated[bytes, Meta(max_length=65)] = b""
    """Of the delegate of a node that has staked, for a contract to read; else empty."""


class Receipts(TaggedMessage, frozen=True, tag="receipts"):
    session: SessionBytes
    first: Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
    windows: Annotated[tuple[SignedWindow, ...], Meta(max_length=MAX_WINDOWS)]
    refused: Text = ""
    commitment: Annotated[bytes, Meta(max_length=32)] = b""


class Reveal(TaggedMessage, frozen=True, tag="reveal"):
    """Ask a hop for the rows that it has sent on, one for each position: as many come as a message may have.

    Whoever has its receipts can tell whether these are the rows.
    """

    session: SessionBytes
    first: Count
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]


class Revealed(TaggedMessage, frozen=True, tag="revealed"):
    """Its payload: the rows, each as if it had been sent alone, one after another."""

    session: SessionBytes
    first: Count
    rows: Count
    size: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD)]
    """Bytes of all rows."""
    refused: Text = ""
    """Why there are none."""


class Close(TaggedMessage, frozen=True, tag="close"):
    session: SessionBytes


class Attest(TaggedMessage, frozen=True, tag="attest"):
    """Ask a peer to show what it runs on: :mod:`shoal.trust.attestation`."""

    number: Number
    """The answer has it too; who asks chooses it."""
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    """New with each question."""


class Attested(TaggedMessage, frozen=True, tag="attested"):
    """What shows it; its payload: that evidence."""

    number: Number
    size: Annotated[int, Meta(ge=0, le=MAX_EVIDENCE)] = 0
    refused: Text = ""
    """Why there is none."""


class Ping(TaggedMessage, frozen=True, tag="ping"):
    nonce: Number


class Pong(TaggedMessage, frozen=True, tag="pong"):
    nonce: Number
    received: Number = 0
    """Bytes of the channel that have come so far."""


class Resume(TaggedMessage, frozen=True, tag="resume"):
    """The first message over a pipe that is to take the place of a channel's own."""

    channel: Annotated[bytes, Meta(min_length=16, max_length=16)]
    """The other end's name of it."""
    received: Number


class Resumed(TaggedMessage, frozen=True, tag="resumed"):
    """The answer; who knows no such channel hangs up. Behind it go the channel's bytes from ``begins`` on."""

    received: Number
    begins: Number


class Goodbye(TaggedMessage, frozen=True, tag="goodbye"):
    """The last message: the channel ends, and is not to go on over another pipe."""


Message = (
    Hello
    | Open
    | Opened
    | Refused
    | Step
    | Failed
    | Reroute
    | Rerouted
    | Locate
    | Located
    | GetReceipts
    | Receipts
    | Reveal
    | Revealed
    | Prove
    | Proved
    | Close
    | KeepCache
    | Infer
    | Inferred
    | InferEncrypted
    | InferredEncrypted
    | Fetch
    | Fetched
    | NotFetched
    | Attest
    | Attested
    | Train
    | Trained
    | NotTrained
    | TraceTurn
    | FederatingMessage
    | PayingMessage
    | Ping
    | Pong
    | Resume
    | Resumed
    | Goodbye
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The header of ``message``; a step's payload travels behind it."""
    return _encoder.encode(message)


def decode(header: bytes | bytearray | memoryview, payload_size: int) -> Message:
    """Read a header that a peer sent, and check it against the size of the payload behind it.

    Raises:
        RemoteProtocolError: not a message, a field out of its bounds, a tensor that is not known or comes
            twice, or a payload of another size.
    """
    if len(header) > MAX_HEADER:
        raise RemoteProtocolError(f"a header of {len(header)} bytes; at most {MAX_HEADER} are allowed")
    try:
        message = _decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a message of ours: {error}") from error
    expected = payload_bytes(message)
    if expected != payload_size:
        raise RemoteProtocolError(
            f"a {type(message).__name__} with {payload_size} bytes of payload where it declares {expected}"
        )
    if isinstance(message, Step) and message.wanted > message.tokens:
        raise RemoteProtocolError(f"a step of {message.tokens} tokens wants {message.wanted} back")
    if isinstance(message, Open | Train) and message.end <= message.start:
        raise RemoteProtocolError(f"an empty span {message.start}:{message.end}")
    if isinstance(message, Train) and message.rows > MAX_ROWS:
        raise RemoteProtocolError(f"a question of tuning of {message.rows} tokens; at most {MAX_ROWS} may be")
    return message


def payload_bytes(message: Message) -> int:
    """Bytes of payload that ``message`` declares: 0 for everything but tensors, rows, a piece and evidence.

    Raises:
        RemoteProtocolError: as :func:`shoal.wire.payload.declared_bytes`.
    """
    if isinstance(
        message, Fetched | Revealed | Prove | Proved | Attested | Train | Trained | UpdatePart | StateGiven
    ):
        return message.size
    if isinstance(message, Infer | Inferred | InferEncrypted | InferredEncrypted):
        return message.size
    return declared_bytes(message.tensors) if isinstance(message, Step) else 0


def shorten(text: str) -> str:
    """``text`` cut to what a message may carry."""
    return text if len(text) <= 1024 else text[:1021] + "..."
