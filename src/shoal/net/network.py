"""The seam to the outside world: what the floors above may ask of a network.

``shoal.net.host`` implements it over libp2p and our direct carrier; ``shoal.testing.memory`` implements
it in memory. Nothing above this floor knows which of the two it has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from shoal.types import CarrierName, NatKind, PeerAddress, PeerId, Way

Validator = Callable[[PeerId, bytes], bool]
"""Judges one gossiped message by its author; what it refuses is neither delivered nor forwarded.

It is called once or more for the same message and must not change anything.
"""

RequestHandler = Callable[[PeerId, bytes], Awaitable[bytes]]
"""Answers one request of a peer."""


class Pipe(Protocol):
    """An encrypted, authenticated byte stream to one peer, over some carrier."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proven by the handshake."""
        ...

    @property
    def carrier(self) -> CarrierName: ...

    @property
    def way(self) -> Way:
        """Which way leads to the other end."""
        ...

    @property
    def host(self) -> str:
        """The address that the other end comes from; empty where the carrier has none."""
        ...

    @property
    def noise_key(self) -> bytes:
        """The other end's static key of the handshake, 32 bytes: who has it is there."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send every byte, in order.

        Raises:
            ChannelClosed: the pipe is gone.
        """
        ...

    def send_now(self, data: bytes) -> bool:
        """Send without waiting, from any thread, while nobody is in ``send_all``; whether it was taken.

        What the system does not take at once is ``unsent`` and goes ahead of the next ``send_all``.

        Raises:
            ChannelClosed: the pipe is gone.
        """
        ...

    @property
    def unsent(self) -> bool: ...

    async def receive_some(self) -> bytes:
        """The next bytes, at least one; ``b""`` when the peer has closed.

        Raises:
            ChannelClosed: the pipe broke.
            RemoteProtocolError: what arrived was not sealed by the peer.
        """
        ...

    async def aclose(self) -> None:
        """Close at once, or soon where that would discard what is on its way. Never raises because the peer
        is already gone."""
        ...


@dataclass(frozen=True, slots=True)
class PeerConnection:
    """A live libp2p connection, as ``shoal peers`` shows it."""

    peer: PeerId
    address: str
    """The multiaddr we reach it at; empty when the connection does not tell."""
    path: Literal["direct", "relayed"]


@dataclass(frozen=True, slots=True)
class ReachView:
    """How this peer can be reached, for people."""

    nat: NatKind
    public: bool
    seen: str
    """The public address that observers agree on; empty when they do not, or there are too few."""
    relays: tuple[PeerId, ...]
    """At which it holds a place."""
    mapped: str = ""
    """The public address that its router leads to it, because it was asked to."""
    six: Literal["open", "closed", "none"] = "none"
    """Whether it has a public IPv6 address, and anybody can dial it there, as far as is known."""


class Network(Protocol):
    """One peer's place in a swarm."""

    @property
    def peer(self) -> PeerId:
        """Our own identity."""
        ...

    @property
    def noise_key(self) -> bytes:
        """Our static key of all handshakes, 32 bytes: new with each process, and never written down."""
        ...

    @property
    def address(self) -> PeerAddress:
        """Where others may reach us, fit to be announced (no unspecified hosts such as 0.0.0.0)."""
        ...

    def reach(self) -> ReachView:
        """How others can reach us, as far as it is known."""
        ...

    def doubt_ways(self) -> None:
        """A peer does not answer: look whether those over whom others call us, and we them, still do."""
        ...

    async def observe(self) -> ReachView:
        """Ask the peers that we are connected to how they see us."""
        ...

    async def wait_moved(self) -> None:
        """Wait until ``address`` has changed."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Our ed25519 signature, 64 bytes. ``shoal.net.identity.verify`` checks it."""
        ...

    async def connect(self, multiaddr: str, *, deadline_s: float) -> PeerId:
        """Join through one bootstrap address that ends in ``/p2p/<peer id>``.

        Raises:
            UsageError: this is not such an address.
            ChannelClosed: nobody answers there.
            NotAllowed: the peer there refuses us (another swarm, or a wrong secret).
        """
        ...

    async def approach(self, address: PeerAddress, *, deadline_s: float) -> None:
        """Connect to a peer at addresses that it announced itself: only those that are fit to be dialled.

        Raises:
            ChannelClosed: nobody answers there.
            NotAllowed: the peer there refuses us.
        """
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """End every libp2p connection to a peer, which may be dead. Having none is no error."""
        ...

    async def open_pipe(self, address: PeerAddress, *, deadline_s: float) -> Pipe:
        """Reach a peer by what works: its direct addresses first, else a libp2p stream.

        Raises:
            ChannelClosed: neither carrier got through in time.
            NotAllowed: the peer refuses us.
        """
        ...

    async def open_direct(self, address: PeerAddress, *, deadline_s: float) -> Pipe:
        """Reach a peer without anybody in the middle, and not over libp2p.

        Raises:
            ChannelClosed: no such way led there in time.
            NotAllowed: the peer refuses us.
        """
        ...

    def accept_pipes(self) -> AsyncIterator[Pipe]:
        """Pipes that other peers open to us, over either carrier."""
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip ``data`` to everyone who subscribes to ``topic`` (and not to ourselves)."""
        ...

    def subscribe(
        self, topic: str, validate: Validator
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[PeerId, bytes]]]:
        """Messages on ``topic`` that passed ``validate``, with their authors. Bounded."""
        ...

    async def provide(self, key: bytes) -> None:
        """Put a provider record for ``key`` into the DHT: "I serve this"."""
        ...

    async def find_providers(self, key: bytes, *, deadline_s: float) -> Sequence[PeerAddress]:
        """Who the DHT says provides ``key``; only libp2p addresses are known this way."""
        ...

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, deadline_s: float) -> bytes:
        """Ask a connected or known peer once. Question and answer are at most 1 MiB each.

        Raises:
            ChannelClosed: the peer cannot be reached or does not speak ``protocol``.
            DeadlineExceeded: it did not answer in time.
            RemoteProtocolError: the answer is too long or cut short.
        """
        ...

    def answer(self, protocol: str, handler: RequestHandler) -> None:
        """Answer ``request`` calls of other peers on ``protocol`` from now on."""
        ...

    async def ping(self, peer: PeerId, *, deadline_s: float) -> float:
        """Round trip of libp2p's ping, in seconds."""
        ...

    def connections(self) -> Sequence[PeerConnection]:
        """The peers that we hold a libp2p connection to now."""
        ...
