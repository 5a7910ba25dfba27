"""A peer's part in the swarm: it hears announcements, makes its own, and tells others what it knows.

However large the swarm, what a member sends and receives in a second stays the same:

- Gossip carries what is new to everybody. The more peers there are, the more rarely each speaks
  (:mod:`.gossip_rate`).
- A few connections beyond the bootstrap peers are kept up, so that the swarm outlives them. Those neighbours
  watch each other (:mod:`.failure.probe`); who does not answer is suspected, and gone unless it refutes that.
- What gossip lost, comparing notes with one neighbour at a time brings: a part of the directory each time
  (:mod:`.anti_entropy`). A newcomer gets the whole at once. Whom others take for gone, or for alive against
  our own belief, is asked itself, which needs no trust.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec
import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, NotAllowed, RemoteProtocolError, ShoalError
from shoal.net.fair_rate import FairRate
from shoal.net.identity import verify
from shoal.net.network import Network
from shoal.routing.coordinates import Coordinates
from shoal.swarm import anti_entropy, gossip_rate
from shoal.swarm.announcement import Announcement, Claim, Misdated, Served, read, seal
from shoal.swarm.anti_entropy import EVERYONE, MAX_PEERS, DirectoryDifference, DirectoryPart, DirectoryQuery
from shoal.swarm.clock import Clock
from shoal.swarm.dates import Dates
from shoal.swarm.directory import Directory
from shoal.swarm.failure.detector import FailureDetector
from shoal.swarm.failure.probe import NeighbourProbe
from shoal.trust.operator import OperatorStatement
from shoal.types import Digest, PeerAddress, PeerId
from shoal.wire.messages import AGENT
from shoal.wire.versions import behind

TOPIC = "/shoal/announce/1"
DIRECTORY_PROTOCOL = "/shoal/directory/3"
CONNECTIONS = 8
"""Connections that a member tries to keep, bootstrap peers among them."""
DIAL_WITHIN_S = 5.0
NEXT_AFTER_S = 0.25
"""How long one bootstrap peer is waited for before the next is dialled beside it, as RFC 8305 does with
addresses: a handshake takes work, and all at once none is done in time on a busy machine."""
OTHERS_WITHIN_S = 0.5
"""How long those that have not answered yet are waited for, where one has."""
PROVIDERS_ASKED = 16
GREET_EVERY_S = 0.5
ANSWER_LIMIT = 900 << 10
PROVIDE_EVERY_S = 600.0
CHECKED_PER_S = 100
"""Words a second that are taken from other directories: a fifth of a millisecond each, for the signature."""
CHECKED_AT_ONCE = 2048
"""After a rest: a newcomer takes all that one answer holds."""
SLICE = 16
"""Words that are checked before others have their turn on the loop: some milliseconds."""
FRIENDS_TOLD = 16
ANSWERS_PER_S = 16
ANSWERS_AT_ONCE = 128
SPEAK_SHARE = 1 / 8
"""Of the time between two words of a peer with nothing new to say: how often it may have something new."""
MOVED_SHARE = 0.2
"""Of the time between two words: how soon a member whose address has changed may say so."""
NEWS_EVERY_S = 0.05
"""Who waits for news is woken once in this time at most, however much there is."""
WARN_EVERY_S = 600.0
"""How often it is said that another process has our identity."""

log = logging.getLogger(__name__)


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
        clock: Clock | None = None,
        chance: random.Random | None = None,
        operator: OperatorStatement | None = None,
    ) -> None:
        """
        Args:
            operator: whose machine it is, if a node is to announce that.
        """
        self.network = network
        self._operator = operator
        self.directory = Directory()
        self.directory.neighbours = frozenset((network.peer,))
        self.served: Callable[[], Served] | None = None
        """Says what this node serves, each time it announces; ``None`` while it serves nothing."""
        self.clock = clock or Clock()
        self.now = self.clock.steady
        """The time that the directory goes by."""
        self._announce_s = announce_s
        self._expiry_s = expiry_s
        self._said_behind = False
        self._bootstrap = tuple(bootstrap)
        self._sequence = 0
        self._warn_at = -math.inf
        self._random = chance or random.Random()
        self._changed = trio.Event()
        self._woken = -math.inf
        self._checked = FairRate(CHECKED_PER_S, CHECKED_AT_ONCE)
        self._answered = FairRate(ANSWERS_PER_S, ANSWERS_AT_ONCE)
        self._failure_detector = FailureDetector(
            network, self.directory, self.now, expiry_s, speak=self._speak, take=self._take
        )
        self._dates = Dates(network, self.clock, rest_s=announce_s, ask=self._meet, take=self._take)
        self._probe = NeighbourProbe(network, self.directory, self.now, expiry_s, self.suspect, self._random)
        network.answer(DIRECTORY_PROTOCOL, self._tell)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Started once a bootstrap peer has told what it knows, if one answers."""
        async with (
            self.network.subscribe(TOPIC, self._valid) as words,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(self._failure_detector.run)
            await nursery.start(self._enter)
            task_status.started()
            for task in (
                self._announce_forever,
                self._provide_forever,
                self._stay_connected,
                self._greet,
                self._dates.run,
                self._probe.run,
            ):
                nursery.start_soon(task)
            async for _, raw in words:
                self._take(raw)

    async def _enter(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Join; started when one bootstrap peer has told what it knows and the others had a moment to do so,
        or when none could."""
        heard, tried = trio.Event(), trio.Event()

        async def join() -> None:
            await self.join(heard.set)
            heard.set()
            tried.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(join)
            await heard.wait()
            with trio.move_on_after(OTHERS_WITHIN_S):
                await tried.wait()
            task_status.started()

    async def join(self, heard: Callable[[], None] = lambda: None) -> dict[str, ShoalError]:
        """Dial the bootstrap peers, one beside the other where one takes its time, and hear what they know.

        Args:
            heard: called each time that one has told.

        Returns:
            What went wrong, by address.
        """
        failures: dict[str, ShoalError] = {}

        async def dial(address: str, done: trio.Event) -> None:
            try:
                peer = await self.network.connect(address, deadline_s=DIAL_WITHIN_S)
                await self.pull(peer)
                heard()
            except ShoalError as error:
                failures[address] = error
                log.info("bootstrap %s: %s", address, error.message)
            done.set()

        async with trio.open_nursery() as nursery:
            for address in self._bootstrap:
                nursery.start_soon(dial, address, done := trio.Event())
                with trio.move_on_after(NEXT_AFTER_S):
                    await done.wait()
        return failures

    async def pull(self, peer: PeerId, part: DirectoryPart = EVERYONE) -> None:
        """Hear what ``peer`` knows of a part of the swarm and we do not; ask those of whom accounts differ.

        Raises:
            ChannelClosed, DeadlineExceeded: it does not answer.
            RemoteProtocolError: its answer makes no sense.
        """
        held = self.directory.held(part, self.now())
        question = anti_entropy.encode(DirectoryQuery(part, held))
        answer = await self.network.request(peer, DIRECTORY_PROTOCOL, question, deadline_s=DIAL_WITHIN_S)
        difference = anti_entropy.read_difference(answer)
        self.clock.heard(peer, difference.wall)
        back = await self._take_all(peer, difference.news)
        unsure = back + self.directory.among(difference.gone)
        await self._failure_detector.ask(unsure)

    async def _take_all(self, teller: PeerId, raws: Sequence[bytes]) -> list[Announcement]:
        """Take in what a peer tells of others, within bounds; those of them that we took for gone.

        What is left out, another comparison brings.
        """
        back: list[Announcement] = []
        for number, raw in enumerate(raws):
            if number % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
            if self.directory.holds(raw):
                continue
            if not self._checked.take(teller, self.now()):
                break
            if (returned := self._take(raw)) is not None:
                back.append(returned)
        return back

    async def _meet(self, peer: PeerId) -> None:
        """Ask a peer for its time, and for next to nothing else. Raises as :meth:`pull`."""
        await self.pull(peer, DirectoryPart(MAX_PEERS, self._random.randrange(MAX_PEERS)))

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

    @property
    def coordinates(self) -> Coordinates:
        """Where this member is, as far as round trips tell."""
        return self._probe.position.coordinates

    async def announce(self) -> None:
        """Say now what this node serves."""
        await self._speak()

    async def leave(self) -> None:
        """Say that this node serves nothing any more."""
        self.served = None
        await self._publish(None)

    async def suspect(self, peer: PeerId) -> bool:
        """Tell the swarm that ``peer`` does not answer: it is gone soon, unless it refutes that.

        Only who is announced is listened to, so a member that serves nothing keeps its suspicions to itself.

        Returns:
            Whether that was said: not of a peer that is suspected already, or has only just spoken.
        """
        return self.served is not None and await self._failure_detector.raise_suspicion(peer)

    async def _speak(self) -> bytes:
        return await self._publish(self.served() if self.served else None)

    async def wait_changed(self) -> None:
        """Wait for the next announcement that says something new; a moment longer where there are many."""
        await self._changed.wait()
        await trio.sleep(max(0.0, self._woken + NEWS_EVERY_S - trio.current_time()))
        self._woken = trio.current_time()

    def alive(self) -> list[Announcement]:
        """Every announcement that holds now, our own too, in the order of their peers' standing."""
        return self.directory.by_standing(self.now())

    async def _publish(self, served: Served | None) -> bytes:
        wall = self.clock.wall()
        # Milliseconds, so that numbers rise over restarts without a file; and they never go back with the
        # clock.
        self._sequence = max(self._sequence + 1, round(wall * 1000))
        if served is not None and self._operator is not None:
            served = self._operated(served, self._operator, wall)
        address = self.network.address
        announcement = Announcement(
            self.network.peer,
            self._sequence,
            wall,
            wall + gossip_rate.lifetime_s(self._expiry_s, len(self.directory)),
            address.libp2p[:16],
            address.direct[:16],
            served,
            AGENT,
        )
        raw = seal(announcement, self.network.sign)
        if served is not None:
            # Our own too: others also hear of us when they compare directories with us.
            self.directory.take(announcement, raw, self.now(), wall)
        else:
            self.directory.drop(self.network.peer, self.now())
        await self.network.publish(TOPIC, raw)
        return raw

    def _operated(self, served: Served, operator: OperatorStatement, wall: float) -> Served:
        """What is announced, with whose machine it is, as long as that holds: others refuse what is over."""
        try:
            operator.check_dates(wall)
        except RemoteProtocolError as error:
            log.warning("this node announces its operator no more: %s", error.message)
            self._operator = None
            return served
        return msgspec.structs.replace(served, operator=operator)

    def _valid(self, author: PeerId, raw: bytes) -> bool:
        try:
            claim = self._checked_claim(raw)
        except RemoteProtocolError as error:
            log.debug("refused from %s: %s", author, error.message)
            return False
        peer = PeerId(claim.announcement.peer)
        # Equal is valid, too: one message is judged more than once, and may have been taken in meanwhile.
        return peer == author and claim.announcement.sequence >= self.directory.sequence(peer)

    def _take(self, raw: bytes) -> Announcement | None:
        """Take an announcement in. Returned if it is a word of a peer that we took for gone."""
        try:
            announcement = self._checked_claim(raw).announcement
            peer = PeerId(announcement.peer)
            if peer == self.network.peer:
                self._hear_of_ourselves(announcement)
                return None
            was_lost = self.directory.is_lost(peer)
            news = self.directory.take(
                announcement, raw, self.now(), self._dates.time_for(announcement), self._may_speak_every_s()
            )
        except RemoteProtocolError as error:
            log.debug("refused: %s", error.message)
            return None
        if news:
            self._changed.set()
            self._changed = trio.Event()
        return announcement if was_lost else None

    def _checked_claim(self, raw: bytes) -> Claim:
        """An announcement that holds; the signature, which costs the most, is looked at last.

        Raises:
            RemoteProtocolError: it does not hold, or its peer speaks too often.
        """
        claim = read(raw)
        peer = PeerId(claim.announcement.peer)
        if raw != self.directory.raw(peer) and not self.directory.may_speak(
            peer, self.now(), self._may_speak_every_s()
        ):
            raise RemoteProtocolError(f"{peer} speaks too often")
        try:
            self._dates.time_for(claim.announcement)
        except Misdated:
            if self._dates.wants(peer):
                claim.check_signature(verify)
                self._dates.note(claim.announcement, raw)
            raise
        claim.check_signature(verify)
        return claim

    def _may_speak_every_s(self) -> float:
        return SPEAK_SHARE * gossip_rate.refresh_s(self._announce_s, len(self.directory))

    def _hear_of_ourselves(self, announcement: Announcement) -> None:
        """Warn of another process with our key: of what we say ourselves we know."""
        now = self.now()
        if not 0 < self._sequence < announcement.sequence or now < self._warn_at:
            return
        self._warn_at = now + WARN_EVERY_S
        log.warning(
            "another process announces itself with this node's identity, %s, at %s: peers reach now the one, "
            "now the other, and sessions on both break. End one of them, or give it an identity of its own "
            "(another SHOAL_HOME). Whoever has the key passes for this node: if nobody of yours copied it, "
            "move it away and make another: shoal identity create",
            announcement.peer,
            ", ".join((*announcement.address.direct, *announcement.address.libp2p)) or "no address",
        )

    async def _tell(self, peer: PeerId, question: bytes) -> bytes:
        asked = anti_entropy.read_query(question)
        # Over its rate it still hears who is gone, and what time it is: those cost next to nothing.
        raws = self._news(asked) if self._answered.take(peer, self.now()) else []
        while sum(map(len, raws)) > ANSWER_LIMIT:
            # From the end: those whom we know ourselves come first.
            del raws[len(raws) * 9 // 10 :]
        return anti_entropy.encode(DirectoryDifference(raws, self.directory.gone(asked.held), self.clock.own))

    def _news(self, asked: DirectoryQuery) -> list[bytes]:
        """What the asker lacks of a part of the directory; first those whom we know ourselves.

        Of a directory too long for one answer, others tell the rest. Some of those whom we know ourselves are
        told whatever the part: so its neighbours' neighbours soon hear of a newcomer, in any crowd.
        """
        friends = self.directory.words_of_friends(self.now())
        raws = self.directory.news(asked.part, asked.held, self.now())
        self._random.shuffle(raws)
        raws.sort(key=lambda raw: raw not in friends)
        if asked.part.of > 1:
            others = [raw for raw in friends if not asked.part.has(friends[raw])]
            raws = [*self._random.sample(others, min(FRIENDS_TOLD, len(others))), *raws]
        return raws

    async def _announce_forever(self) -> None:
        while True:
            if self.served is not None:
                await self.announce()
            self._note_release()
            # By chance a little sooner or later, so that members do not all speak at the same moment.
            every_s = gossip_rate.refresh_s(self._announce_s, len(self.directory))
            every_s *= self._random.uniform(0.9, 1.1)
            # Who speaks too often is not heard, so a new address waits a moment, too.
            await trio.sleep(every_s * MOVED_SHARE)
            with trio.move_on_after(every_s * (1 - MOVED_SHARE)):
                await self.network.wait_moved()

    def _note_release(self) -> None:
        """Say once that most others run a newer release."""
        if not self._said_behind and (said := self.behind()):
            log.warning("%s", said)
            self._said_behind = True

    def behind(self) -> str:
        """That most peers run a newer release than this machine, in a sentence; empty where they do not."""
        return behind(AGENT, (a.agent for a in self.alive() if a.peer != self.network.peer))

    async def _provide_forever(self) -> None:
        while True:
            served = self.served() if self.served else None
            if served is not None:
                with suppress(ChannelClosed, DeadlineExceeded):  # the next round tries again
                    await self.network.provide(manifest_key(Digest(served.digest)))
            await trio.sleep(PROVIDE_EVERY_S if served else self._announce_s)

    async def _stay_connected(self) -> None:
        """Keep some connections, whoever the bootstrap peers were, and compare notes with one of them."""
        while True:
            await trio.sleep(self._announce_s * self._random.uniform(0.5, 1.0))
            connected = {c.peer for c in self.network.connections()}
            if not connected:
                await self.join()
            strangers = [a for a in self.alive() if a.peer not in connected and a.peer != self.network.peer]
            self._random.shuffle(strangers)
            dialled = strangers[: max(0, CONNECTIONS - len(connected))]
            # Of two halves of a swarm that were cut from each other, each has the other for lost (as in
            # Serf).
            lost = self.directory.lost()
            dialled += self._random.sample(lost, min(1, len(lost)))
            async with trio.open_nursery() as nursery:
                for announcement in dialled:
                    nursery.start_soon(self._dial, announcement)
            if connected:
                await self._compare(self._random.choice(sorted(connected)))

    async def _greet(self) -> None:
        """Compare notes with everybody with whom a connection has come about, by whoever's doing."""
        greeted: set[PeerId] = set()
        while True:
            connected = {c.peer for c in self.network.connections()}
            self.directory.neighbours = frozenset((*connected, self.network.peer))
            for peer in sorted(connected - greeted):
                await self._compare(peer)
            # Who has left is greeted again when it comes back.
            greeted = connected
            await trio.sleep(GREET_EVERY_S)

    async def _compare(self, peer: PeerId) -> None:
        """Compare a part of the directory, chosen at random, with a neighbour's."""
        of = gossip_rate.parts(len(self.directory))
        with suppress(ChannelClosed, DeadlineExceeded, RemoteProtocolError):
            await self.pull(peer, DirectoryPart(of, self._random.randrange(of)))

    async def _dial(self, announcement: Announcement) -> None:
        with suppress(ShoalError):  # a stranger that cannot be dialled is no fault of ours
            await self.network.approach(announcement.address, deadline_s=DIAL_WITHIN_S)
