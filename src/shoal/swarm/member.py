"""A peer's part in the swarm: it hears announcements, makes its own, and tells others what it knows.

However large the swarm, what a member sends and receives in a second stays the same:

- Gossip carries what is new to everybody. The more peers there are, the more rarely each speaks
  (:mod:`.gossip_rate`).
- A few connections beyond the bootstrap peers are kept up, so that the swarm outlives them. Those neighbours
  watch each other (:mod:`.failure.probe`); who does not answer is suspected, and gone unless it refutes that.
- What gossip lost, comparing notes with one neighbour at a time brings: a part of the directory each time
  (:mod:`.anti_entropy`). A newcomer gets the whole at once. Whom others take for gone, or for alive against
  our own belief, is asked itself, which needs no trust.
- Of a large swarm it hears and keeps what concerns its own models, and a little of the others
  (:mod:`.views.rules`); what else it needs it looks up (:mod:`.views.look_up`).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import suppress
from functools import partial

import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError, ShoalError
from shoal.net.identity import verify
from shoal.net.network import Network
from shoal.routing.coordinates import Coordinates
from shoal.swarm.announcement import Announcement, Claim, Misdated, Served, read
from shoal.swarm.anti_entropy import EVERYONE, MAX_PEERS, DirectoryPart
from shoal.swarm.clock import Clock
from shoal.swarm.dates import Dates
from shoal.swarm.directory import Directory
from shoal.swarm.failure.detector import TOPIC as SUSPICION_TOPIC
from shoal.swarm.failure.detector import FailureDetector
from shoal.swarm.failure.probe import NeighbourProbe
from shoal.swarm.taking_part.comparison import DirectoryComparison
from shoal.swarm.taking_part.neighbours import Neighbours
from shoal.swarm.taking_part.speaker import TOPIC, Speaker
from shoal.swarm.taking_part.topics import ModelTopics
from shoal.swarm.views.look_up import DIAL_WITHIN_S, ModelLookUp, manifest_key
from shoal.swarm.views.rules import TOLD, ViewRules, model_topic
from shoal.swarm.views.size import SwarmSize
from shoal.trust.operator import OperatorStatement
from shoal.types import Digest, PeerId
from shoal.wire.messages import AGENT
from shoal.wire.versions import behind

NEXT_AFTER_S = 0.25
"""How long one bootstrap peer is waited for before the next is dialled beside it, as RFC 8305 does with
addresses: a handshake takes work, and all at once none is done in time on a busy machine."""
OTHERS_WITHIN_S = 0.5
"""How long those that have not answered yet are waited for, where one has."""
LOOK_SHARE = 1 / 10
"""Of ``announce_s``: from one look at the size of the swarm to the next."""
PROVIDE_EVERY_S = 600.0
SPEAK_SHARE = 1 / 8
"""Of the time between two words of a peer with nothing new to say: how often it may have something new."""
MOVED_SHARE = 0.2
"""Of the time between two words: how soon a member whose address has changed may say so."""
NEWS_EVERY_S = 0.05
"""Who waits for news is woken once in this time at most, however much there is."""
log = logging.getLogger(__name__)


class Member:
    """One peer in the swarm. ``run`` must be running for it to hear and to announce."""

    def __init__(
        self,
        network: Network,
        *,
        announce_s: float,
        expiry_s: float,
        bootstrap: Iterable[str] = (),
        swarm: bytes = b"",
        views: ViewRules | None = None,
        clock: Clock | None = None,
        chance: random.Random | None = None,
        operator: OperatorStatement | None = None,
    ) -> None:
        """
        Args:
            operator: whose machine it is, if a node is to announce that.
            swarm: what its members alone know, which names its models' topics; nothing for the public one.
            views: from when on a part of the swarm is kept, and how large that is.
        """
        self.network = network
        self.directory = Directory()
        self.directory.own = network.peer
        self.directory.neighbours = frozenset((network.peer,))
        self.served: Callable[[], Served] | None = None
        """Says what this node serves, each time it announces; ``None`` while it serves nothing."""
        self.clock = clock or Clock()
        self.now = self.clock.steady
        """The time that the directory goes by."""
        self._announce_s = announce_s
        self._said_behind = False
        self._bootstrap = tuple(bootstrap)
        self._random = chance or random.Random()
        self._changed = trio.Event()
        self._woken = -math.inf
        self.size = SwarmSize(views or ViewRules(), self.directory, announce_s, expiry_s, self.now)
        """How large the swarm is, and whether all of it is kept."""
        self._topic_of = partial(model_topic, swarm)
        self._speaker = Speaker(
            network,
            self.directory,
            self.size,
            self.clock,
            self.now,
            self._random,
            partial(self._topic_of, TOPIC),
            operator,
        )
        self._failure_detector = FailureDetector(
            network,
            self.directory,
            self.now,
            expiry_s,
            speak=self._speak,
            take=self._take,
            topics=self._suspicion_topics,
        )
        self._comparison = DirectoryComparison(
            network,
            self.directory,
            self.clock,
            self.now,
            self._random,
            take=self._take,
            ask=self._failure_detector.ask,
        )
        self._announcements, self._suspicions = self._model_topics()
        self._look_up = ModelLookUp(network, self.directory, self.now, self._ask_of_model, self._random)
        self._neighbours = Neighbours(
            network,
            self.directory,
            self.size,
            announce_s,
            self._random,
            now=self.now,
            join=self.join,
            pull=self.pull,
        )
        self._dates = Dates(network, self.clock, rest_s=announce_s, ask=self._meet, take=self._take)
        self._probe = NeighbourProbe(network, self.directory, self.now, expiry_s, self.suspect, self._random)

    def _model_topics(self) -> tuple[ModelTopics, ModelTopics]:
        """Those on which a model's peers speak, and those on which they suspect one another."""
        detector = self._failure_detector
        return (
            ModelTopics(self.network, partial(self._topic_of, TOPIC), self._valid_of_model, self._hear),
            ModelTopics(
                self.network,
                partial(self._topic_of, SUSPICION_TOPIC),
                lambda _, accuser, raw: detector.valid_of_model(accuser, raw),
                detector.hear,
            ),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Started once a bootstrap peer has told what it knows, if one answers."""
        async with (
            self.network.subscribe(TOPIC, self._valid) as words,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(self._failure_detector.run)
            await nursery.start(self._enter)
            self._look()
            task_status.started()
            for task in (
                self._announce_forever,
                self._provide_forever,
                self._neighbours.run,
                self._neighbours.greet,
                self._dates.run,
                self._probe.run,
                self._look_at_size,
                self._announcements.run,
                self._suspicions.run,
            ):
                nursery.start_soon(task)
            await self._hear(words)

    async def _hear(self, words: AsyncIterator[tuple[PeerId, bytes]]) -> None:
        async for _, raw in words:
            self._take(raw)

    async def _look_at_size(self) -> None:
        while True:
            await trio.sleep(self._announce_s * LOOK_SHARE)
            self._look()

    def _look(self) -> None:
        """Keep all of a small swarm, and a part of a large one."""
        before = self.size.partial
        self.size.look()
        if self.size.partial != before:
            size = "large" if self.size.partial else "small"
            log.info("the swarm is a %s one now: %d peers", size, self.size.peers)
            self._speaker.wait_turn()
        self._join_topics()

    def _join_topics(self) -> None:
        joined = self.size.joined
        self._announcements.want(joined)
        self._suspicions.want(joined)

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

    async def pull(
        self,
        peer: PeerId,
        part: DirectoryPart = EVERYONE,
        models: Collection[Digest] = (),
        most: int = MAX_PEERS,
    ) -> None:
        """Hear what ``peer`` knows and we do not. As :meth:`DirectoryComparison.pull`."""
        await self._comparison.pull(peer, part, models, most)

    async def _meet(self, peer: PeerId) -> None:
        """Ask a peer for its time, and for next to nothing else. Raises as :meth:`pull`."""
        await self.pull(peer, DirectoryPart(MAX_PEERS, self._random.randrange(MAX_PEERS)))

    async def _ask_of_model(self, peer: PeerId, digest: Digest | None = None) -> None:
        if digest is None:
            await self.pull(peer)
        else:
            await self.pull(peer, EVERYONE, (digest,), TOLD)

    async def find(self, digest: Digest) -> None:
        """Hear of who serves a model: from those whom the DHT names, in a large swarm first from those who
        are known to serve it.

        Raises:
            ChannelClosed, DeadlineExceeded: the DHT does not answer.
        """
        if self.size.partial:
            await self._look_up.in_part(digest)
        else:
            await self._look_up.by_providers(digest, DIAL_WITHIN_S)

    async def use(self, digest: Digest) -> None:
        """This machine asks for a model, or is going to serve it: of its peers more are kept.

        They are looked up, if the model had not been asked for of late.
        """
        if self.size.asks(digest):
            self._join_topics()
            await self._look_up.in_part(digest)

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
        await self._speaker.publish(None)
        self.size.serves = None

    async def suspect(self, peer: PeerId) -> bool:
        """Tell the swarm that ``peer`` does not answer: it is gone soon, unless it refutes that.

        Only who is announced is listened to, so a member that serves nothing keeps its suspicions to itself.

        Returns:
            Whether that was said: not of a peer that is suspected already, or has only just spoken.
        """
        return self.served is not None and await self._failure_detector.raise_suspicion(peer)

    async def _speak(self) -> bytes:
        return await self._speaker.publish(self.served() if self.served else None)

    async def wait_changed(self) -> None:
        """Wait for the next announcement that says something new; a moment longer where there are many."""
        await self._changed.wait()
        await trio.sleep(max(0.0, self._woken + NEWS_EVERY_S - trio.current_time()))
        self._woken = trio.current_time()

    def alive(self) -> list[Announcement]:
        """Every announcement that holds now, our own too, in the order of their peers' standing."""
        return self.directory.by_standing(self.now())

    def _suspicion_topics(self, suspected: PeerId) -> list[str]:
        """Where those are who know a peer."""
        said = self.directory.get(suspected)
        if not self.size.partial or said is None or said.served is None:
            return [SUSPICION_TOPIC]
        own = self._topic_of(SUSPICION_TOPIC, Digest(said.served.digest))
        return [own, SUSPICION_TOPIC] if self.size.overlapping else [own]

    def _valid_of_model(self, digest: Digest, author: PeerId, raw: bytes) -> bool:
        """As :meth:`_valid`; and it is about that model."""
        announcement = self._judged(author, raw)
        if announcement is None:
            return False
        before = self.directory.get(author)
        # Who leaves names no model.
        about = announcement.served or (before.served if before is not None else None)
        return about is None or about.digest == digest

    def _valid(self, author: PeerId, raw: bytes) -> bool:
        return self._judged(author, raw) is not None

    def _judged(self, author: PeerId, raw: bytes) -> Announcement | None:
        """What a peer says of itself; ``None`` if it does not hold, or is older than what it said last."""
        try:
            announcement = self._checked_claim(raw).announcement
        except RemoteProtocolError as error:
            log.debug("refused from %s: %s", author, error.message)
            return None
        # Equal is valid, too: one message is judged more than once, and may have been taken in meanwhile.
        holds = announcement.peer == author and announcement.sequence >= self.directory.sequence(author)
        return announcement if holds else None

    def hear(self, raw: bytes) -> None:
        """Take in an announcement that was heard elsewhere on this machine, if it holds."""
        self._take(raw)

    def _take(self, raw: bytes) -> Announcement | None:
        """Take an announcement in. Returned if it is a word of a peer that we took for gone."""
        try:
            announcement = self._checked_claim(raw).announcement
            peer = PeerId(announcement.peer)
            if peer == self.network.peer:
                self._speaker.hear_of_ourselves(announcement)
                return None
            was_lost = self.directory.is_lost(peer)
            news = self.directory.take(
                announcement,
                raw,
                self.now(),
                self._dates.time_for(announcement),
                self._may_speak_every_s(announcement),
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
            RemoteProtocolError: it does not hold, or its peer speaks too often or has said something newer.
        """
        claim = read(raw)
        peer = PeerId(claim.announcement.peer)
        every_s = self._may_speak_every_s(claim.announcement)
        if not self.directory.may_speak(claim.announcement, raw, self.now(), every_s):
            raise RemoteProtocolError(f"{peer} speaks too often, or has said something newer")
        try:
            self._dates.time_for(claim.announcement)
        except Misdated:
            if self._dates.wants(peer):
                claim.check_signature(verify)
                self._dates.note(claim.announcement, raw)
            raise
        claim.check_signature(verify)
        return claim

    def _may_speak_every_s(self, announcement: Announcement) -> float:
        return SPEAK_SHARE * self.size.refresh_s(announcement.served.digest if announcement.served else "")

    async def _announce_forever(self) -> None:
        while True:
            if self.served is not None:
                await self._speaker.publish(self.served(), news=False)
            self._note_release()
            # By chance a little sooner or later, so that members do not all speak at the same moment.
            every_s = self.size.rest_s() * self._random.uniform(0.9, 1.1)
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
