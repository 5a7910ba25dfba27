"""A peer's part in the swarm: it hears announcements, makes its own, and tells newcomers what it knows.

Gossip carries what is new. A pull from one random peer now and then carries what gossip lost, and gives a
newcomer the whole directory at once. A few connections beyond the bootstrap peers are kept up, so that the
swarm outlives them.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec
import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, NotAllowed, RemoteProtocolError, ShoalError
from shoal.net.identity import verify
from shoal.net.network import Network
from shoal.swarm.announcement import Announcement, Served, seal, unseal
from shoal.swarm.directory import Directory
from shoal.types import Digest, PeerAddress, PeerId

TOPIC = "/shoal/announce/1"
DIRECTORY_PROTOCOL = "/shoal/directory/1"
CONNECTIONS = 8
"""Connections that a member tries to keep, bootstrap peers among them."""
DIAL_WITHIN_S = 5.0
PROVIDERS_ASKED = 16
GREET_EVERY_S = 0.5
ANSWER_LIMIT = 900 << 10
PROVIDE_EVERY_S = 600.0
AGENT = "shoal/0.1"

log = logging.getLogger(__name__)

_raw_list = msgspec.msgpack.Decoder(list[bytes])


def manifest_key(digest: Digest) -> bytes:
    """The DHT key of a model: the 32 bytes of its digest, which are the sha2-256 of its manifest."""
    return bytes.fromhex(digest.removeprefix("sha256:"))


class Member:
    """One peer in the swarm. ``run`` must be running for it to hear and to announce."""

    def __init__(
        self,
        network: Network,
        *,
        announce_s: float,
        expiry_s: float,
        bootstrap: Iterable[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self.network = network
        self.directory = Directory()
        self.served: Callable[[], Served] | None = None
        """Says what this node serves, each time it announces; ``None`` while it serves nothing."""
        self.now = now
        self._announce_s = announce_s
        self._expiry_s = expiry_s
        self._bootstrap = tuple(bootstrap)
        self._sequence = 0
        self._random = random.Random()
        self._changed = trio.Event()
        network.answer(DIRECTORY_PROTOCOL, self._tell)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Started once what the bootstrap peers know has been heard."""
        async with (
            self.network.subscribe(TOPIC, self._valid) as messages,
            trio.open_nursery() as nursery,
        ):
            await self.join()
            task_status.started()
            nursery.start_soon(self._announce_forever)
            nursery.start_soon(self._provide_forever)
            nursery.start_soon(self._stay_connected)
            nursery.start_soon(self._greet)
            async for _, raw in messages:
                self._take(raw)

    async def join(self) -> dict[str, ShoalError]:
        """Dial the bootstrap peers, all at once, and hear what they know.

        Returns:
            What went wrong, by address.
        """
        failures: dict[str, ShoalError] = {}

        async def dial(address: str) -> None:
            try:
                peer = await self.network.connect(address, deadline_s=DIAL_WITHIN_S)
                await self.pull(peer)
            except ShoalError as error:
                failures[address] = error
                log.info("bootstrap %s: %s", address, error.message)

        async with trio.open_nursery() as nursery:
            for address in self._bootstrap:
                nursery.start_soon(dial, address)
        return failures

    async def pull(self, peer: PeerId) -> None:
        """Hear all that ``peer`` knows.

        Raises:
            ChannelClosed, DeadlineExceeded: it does not answer.
            RemoteProtocolError: its answer is no list of announcements.
        """
        answer = await self.network.request(peer, DIRECTORY_PROTOCOL, b"", deadline_s=DIAL_WITHIN_S)
        try:
            raws = _raw_list.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RemoteProtocolError(f"{peer} answered with no directory: {error}") from error
        for raw in raws:
            self._take(raw)

    async def find(self, digest: Digest) -> None:
        """Ask the DHT who serves a model, and hear from those whom we have not heard of."""
        providers = await self.network.find_providers(manifest_key(digest), deadline_s=DIAL_WITHIN_S)

        async def hear(provider: PeerAddress) -> None:
            with suppress(ChannelClosed, DeadlineExceeded, RemoteProtocolError, NotAllowed):
                await self.network.approach(provider, deadline_s=DIAL_WITHIN_S)
                await self.pull(provider.peer)

        async with trio.open_nursery() as nursery:
            for provider in providers[:PROVIDERS_ASKED]:
                if provider.peer != self.network.peer and self.directory.sequence(provider.peer) < 0:
                    nursery.start_soon(hear, provider)

    async def announce(self) -> None:
        """Say now what this node serves."""
        await self._publish(self.served() if self.served else None, self._expiry_s)

    async def leave(self) -> None:
        """Say that this node serves nothing any more."""
        self.served = None
        await self._publish(None, self._expiry_s)

    async def wait_changed(self) -> None:
        """Wait for the next announcement that says something new."""
        await self._changed.wait()

    def alive(self) -> list[Announcement]:
        """Every announcement that holds now, our own among them."""
        return self.directory.alive(self.now())

    async def _publish(self, served: Served | None, lifetime_s: float) -> None:
        now = self.now()
        self._sequence = max(self._sequence + 1, round(now * 1000))
        address = self.network.address
        announcement = Announcement(
            self.network.peer,
            self._sequence,
            now,
            now + lifetime_s,
            address.libp2p[:16],
            address.direct[:16],
            served,
            AGENT,
        )
        raw = seal(announcement, self.network.sign)
        if served is not None:
            self.directory.take(announcement, raw, now)
        else:
            self.directory.drop(self.network.peer)
        await self.network.publish(TOPIC, raw)

    def _valid(self, author: PeerId, raw: bytes) -> bool:
        try:
            announcement = unseal(raw, self.now(), verify)
        except RemoteProtocolError as error:
            log.debug("refused from %s: %s", author, error.message)
            return False
        peer = PeerId(announcement.peer)
        return peer == author and announcement.sequence >= self.directory.sequence(peer)

    def _take(self, raw: bytes) -> None:
        now = self.now()
        try:
            announcement = unseal(raw, now, verify)
            news = announcement.peer != self.network.peer and self.directory.take(announcement, raw, now)
        except RemoteProtocolError as error:
            log.debug("refused: %s", error.message)
            return
        if news:
            self._changed.set()
            self._changed = trio.Event()

    async def _tell(self, peer: PeerId, question: bytes) -> bytes:
        if question:
            raise RemoteProtocolError("a question with a body, where none is expected")
        raws = self.directory.raw(self.now())
        self._random.shuffle(raws)  # of a directory too long for one answer, others tell the rest
        while sum(map(len, raws)) > ANSWER_LIMIT:
            del raws[len(raws) * 9 // 10 :]
        return msgspec.msgpack.encode(raws)

    async def _announce_forever(self) -> None:
        while True:
            if self.served is not None:
                await self.announce()
            await trio.sleep(self._announce_s * self._random.uniform(0.9, 1.1))

    async def _provide_forever(self) -> None:
        while True:
            served = self.served() if self.served else None
            if served is not None:
                with suppress(ChannelClosed, DeadlineExceeded):  # the next round tries again
                    await self.network.provide(manifest_key(Digest(served.digest)))
            await trio.sleep(PROVIDE_EVERY_S if served else self._announce_s)

    async def _stay_connected(self) -> None:
        """Keep some connections, whoever the bootstrap peers were, and pull from one of them each round."""
        while True:
            await trio.sleep(self._announce_s * self._random.uniform(0.5, 1.0))
            connected = {c.peer for c in self.network.connections()}
            if not connected:
                await self.join()
            strangers = [a for a in self.alive() if a.peer not in connected and a.peer != self.network.peer]
            self._random.shuffle(strangers)
            for announcement in strangers[: max(0, CONNECTIONS - len(connected))]:
                await self._dial(announcement)
            if connected:
                with suppress(ChannelClosed, DeadlineExceeded, RemoteProtocolError):
                    await self.pull(self._random.choice(sorted(connected)))

    async def _greet(self) -> None:
        """Pull once from everybody with whom a connection has come about, by whoever's doing."""
        greeted: set[PeerId] = set()
        while True:
            connected = {c.peer for c in self.network.connections()}
            for peer in connected - greeted:
                with suppress(ChannelClosed, DeadlineExceeded, RemoteProtocolError):
                    await self.pull(peer)
            greeted = connected
            await trio.sleep(GREET_EVERY_S)

    async def _dial(self, announcement: Announcement) -> None:
        with suppress(ShoalError):  # a stranger that cannot be dialled is no fault of ours
            await self.network.approach(announcement.address, deadline_s=DIAL_WITHIN_S)
