"""The rings of one client: opened over the routes that are found, watched, and closed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from shoal.client.attestation.asking import AttestationQuestions
from shoal.client.attestation.attested import RENEW_S, AttestedPeers, no_measurements
from shoal.client.paying.accounts import HopAccounts
from shoal.client.paying.terms import HopBill
from shoal.client.ring.at_once import answer_at_once
from shoal.client.ring.hop import HopNotAsked, HopRefused, RouteHop
from shoal.client.ring.ring import Ring, RingMessage
from shoal.client.ring.route_finder import RouteFinder
from shoal.client.tuning.questions import TrainingQuestions
from shoal.config import Settings
from shoal.errors import (
    Busy,
    ChannelClosed,
    DeadlineExceeded,
    NoCoverage,
    PaymentStopped,
    RemoteProtocolError,
    ShoalError,
)
from shoal.executor.ends import EndsEngine
from shoal.metrics.meters import Metrics
from shoal.metrics.trace import RerouteTrace, Trace, short_session
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.routing.reputation import REFUSAL
from shoal.swarm.member import Member
from shoal.tasks import ends_alone
from shoal.trust.attestation.measurements import Measurements, read_measurements
from shoal.trust.attestation.verify import MAKERS, Roots
from shoal.types import Codec, ModelShape, Numerics, PeerAddress, PeerId, SessionId, Span
from shoal.wire.cache_names import Beginning, CacheKey
from shoal.wire.messages import Attested, Message
from shoal.wire.paying import PaymentDue
from shoal.wire.training import NotTrained, Trained

OPEN_ATTEMPTS = 64
"""Routes that are tried for one session."""
SEARCH_SHARE = 2
"""Routes are tried for so many times what hops have to open a session, over peers that refuse or are gone."""
NEWCOMER_OPENS_S = 0.75
"""What a route has to open the session, where there are others and a hop of it has not answered before."""
NEWCOMER_TRIPS = 10
"""The same in round trips to the farthest hop, beside it; not known of who has never been reached."""
PATIENCE = 1.3
"""By how much more, each time a route had too little: far away, or on a busy machine, all need more."""
REACH_WITHIN_S = 1.5
"""How long a hop that another calls gone has to show that it is not."""
CLOSE_WITHIN_S = 2.0
WATCH_EVERY_S = 0.5
ATTEST_EVERY_S = 15.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Search:
    """What the attempts to open one session have shown so far."""

    trial: bool
    avoid: set[PeerId] = field(default_factory=set[PeerId])
    doubtful: set[PeerId] = field(default_factory=set[PeerId])
    """Of those, who had little time or is at odds with another: asked again when nobody else is left."""
    hurried: bool = True
    """Whether routes with newcomers have less time than there is."""
    newcomer_opens_s: float = NEWCOMER_OPENS_S
    refused: ShoalError | None = None
    """Why the last one was."""
    asked_others: bool = False
    """Whether those were asked what they run on who were not needed for a route at first."""
    renewed: set[PeerId] = field(default_factory=set[PeerId])
    """Who was asked that again, as it has another key than it had shown."""

    def ask_doubtful_again(self) -> bool:
        """Whether there is anybody to ask again; they then have all the time there is."""
        if not self.doubtful:
            return False
        self.avoid -= self.doubtful
        self.doubtful = set()
        self.hurried = False
        return True


class Rings:
    """The rings of one client. ``run`` must be running."""

    def __init__(
        self,
        network: Network,
        member: Member,
        settings: Settings,
        accounts: HopAccounts | None = None,
    ) -> None:
        """
        Args:
            accounts: by which hops are told who asks, and are paid; ``None``: by none.
        """
        self._accounts = accounts or HopAccounts()
        self.member = member
        self._settings = settings
        self._rings: dict[SessionId, Ring] = {}
        self.finder = RouteFinder(member, settings, self.round_trips)
        self.metrics = Metrics()
        self.trace = Trace()
        """Steps round whole rings, and the losses that sessions survived."""
        self._pool = ChannelPool(
            network,
            self._handle,
            self._lost,
            held=self._holds,
            where=member.directory.address_of,
            at_once=self._at_once,
        )
        self.ends: list[EndsEngine] = []
        """What may answer results where they come."""
        self.training = TrainingQuestions()
        """Those of tuning that wait for answers."""
        self.attested: AttestedPeers | None = None
        """Who has shown what it runs on; none where there is no list of what may."""
        self._payments = self._accounts.payments(lambda: self._bills, self._stop)
        self._nursery: trio.Nursery | None = None
        self._attested_finder: RouteFinder | None = None

    def attest_by(self, allowed: Measurements, roots: Roots = MAKERS) -> RouteFinder:
        """From now on peers can be asked what they run on, which must be on the list.

        Returns:
            What finds routes over those that have shown it.
        """
        questions = AttestationQuestions(allowed, self.member.clock.wall, roots)
        self.attested = AttestedPeers(self._pool, questions, self._start, self._attested_hops)
        self._attested_finder = self.finder.among_attested(self.attested)
        return self._attested_finder

    def finder_for(self, *, attested: bool) -> RouteFinder:
        """What finds routes over all peers, or over those alone that have shown what they run on.

        Raises:
            UsageError: there is no list of what may run, or it cannot be read.
        """
        if not attested:
            return self.finder
        if self._attested_finder is None:
            path = self._settings.measurements_file
            if not path.exists():
                raise no_measurements(path)
            return self.attest_by(read_measurements(path))
        return self._attested_finder

    @property
    def open_timeout_s(self) -> float:
        """Seconds that every hop has to open a session, as set."""
        return self._settings.open_timeout_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move messages, watch the hops, and pay them, until cancelled."""
        # While the last vouchers are sent, messages still move.
        moving = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self._move, moving)
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._watch)
                    self._nursery.start_soon(self._watch_attested)
                    if self._payments is not None:
                        self._nursery.start_soon(self._payments.run)
                    task_status.started()
            finally:
                self._nursery = None
                await self._pool.wait_sent(CLOSE_WITHIN_S)
                moving.cancel()

    async def _move(
        self, moving: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with moving:
            await self._pool.run(accept=False, task_status=task_status)

    async def open(
        self,
        shape: ModelShape,
        numerics: Numerics,
        tokens: int,
        *,
        span: Span | None = None,
        timeout_s: float | None = None,
        codec: Codec | None = None,
        attested: bool = False,
        begins: Beginning | None = None,
        background: bool = False,
    ) -> Ring:
        """A ring over the cheapest route that takes us.

        Args:
            tokens: what every hop reserves KV for.
            span: the blocks that the ring is to run; by default all of the model.
            timeout_s: for every hop to open the session; by default as set.
            codec: of a session that goes on; by default what is set, or what the links ask for.
            attested: over nobody who has not shown what it runs on.
            begins: what hops may have kept; ``Ring.held`` says what they have.
            background: nobody waits for what comes of it.

        Raises:
            NoCoverage: blocks that nobody serves.
            Busy: every route that was tried is full.
            DigestMismatch: only another version of the model is served.
        """
        finder = self.finder_for(attested=attested)
        timeout_s = timeout_s or self.open_timeout_s
        span = span or Span(0, shape.n_blocks)
        affinity, caches = (begins.affinity, begins.keys) if begins is not None else (b"", ())
        search = _Search(trial=self.finder.draw_trial())
        if search.trial:
            affinity = b""  # else no newcomer is ever tried by who asks for conversations alone
        have_shown = partial(self.have_shown, finder, shape, numerics, tokens, span, search.avoid)
        if attested:
            await have_shown()
        until = trio.current_time() + SEARCH_SHARE * timeout_s
        for _ in range(OPEN_ATTEMPTS):
            if search.refused is not None and trio.current_time() >= until:
                break
            try:
                route = finder.find(
                    shape, numerics, tokens, search.avoid, span=span, trial=search.trial, affinity=affinity
                )
            except (NoCoverage, Busy) as error:
                if search.ask_doubtful_again():
                    continue
                if attested and not search.asked_others:
                    search.asked_others = True
                    until += await have_shown()
                    continue
                raise search.refused or error from None
            has_s = self._opens_within_s(search, route, timeout_s) if search.hurried else timeout_s
            try:
                return await self.open_over(
                    route, shape, numerics, tokens, has_s, codec, finder, caches, background=background
                )
            except HopRefused as error:
                if attested and self._forget_renewed(search, route):
                    until += await have_shown()
                    continue
                await self._note_refusal(search, route, error, hurried=has_s < timeout_s)
        raise search.refused or NoCoverage("no route was found")

    async def have_shown(
        self,
        finder: RouteFinder,
        shape: ModelShape,
        numerics: Numerics,
        tokens: int,
        span: Span,
        avoid: set[PeerId],
    ) -> float:
        """Have peers show what they run on: as many as make a route without ``avoid``, or all.

        Returns:
            The seconds that it took.
        """
        began = trio.current_time()

        def enough() -> bool:
            return finder.has_route(shape, numerics, tokens, avoid, span=span)

        if self.attested is not None:
            fitting = finder.serving_by(shape, numerics)
            await self.attested.refresh([a for a in fitting if a.peer not in avoid], enough=enough)
        return trio.current_time() - began

    def _forget_renewed(self, search: _Search, route: Sequence[RouteHop]) -> bool:
        """Forget what hops have shown that have another key now, as after a restart.

        Returns:
            Whether there are any, of those that were not asked again before.
        """
        if self.attested is None:
            return False
        keys = {channel.peer: channel.noise_key for channel in self._pool.all() if not channel.closed}
        shown = {hop.address.peer: hop.noise_key for hop in route}
        found = {peer for peer, key in shown.items() if keys.get(peer, key) != key} - search.renewed
        search.renewed |= found
        for peer in found:
            self.attested.forget(peer)
        return bool(found)

    def _attested_hops(self) -> set[PeerId]:
        return {hop.address.peer for ring in self._rings.values() for hop in ring.route if hop.noise_key}

    def _start(self, run: Callable[..., Awaitable[None]], *given: Any) -> None:
        if self._nursery is None:
            raise ChannelClosed("this client is not running")
        self._nursery.start_soon(run, *given)

    async def _note_refusal(
        self, search: _Search, route: Sequence[RouteHop], error: HopRefused, *, hurried: bool
    ) -> None:
        """Learn from a hop that did not take part.

        Args:
            hurried: it had less time than there is.
        """
        search.trial, search.refused = False, error.error
        log.info("a route was refused: %s", error.message)
        if isinstance(error, HopNotAsked):
            search.avoid.add(error.peer)
            return
        at_odds = await self._at_odds(route, error)
        peers = at_odds or {error.gone or error.peer}
        out_of_reach = isinstance(error.error, ChannelClosed | DeadlineExceeded)
        if out_of_reach and hurried:
            search.newcomer_opens_s *= PATIENCE
        if at_odds or (out_of_reach and hurried):
            search.doubtful |= peers
        elif out_of_reach:
            self.finder.suspect(error.gone or error.peer)  # gone and still listed: no refusal
        search.avoid |= peers
        for peer in peers:
            self.finder.reputation.failed(peer, trio.current_time(), REFUSAL)

    def _opens_within_s(self, search: _Search, route: Sequence[RouteHop], timeout_s: float) -> float:
        """What a route has to open a session: less where a hop of it may well never answer."""
        if all(hop.proven for hop in route):
            return timeout_s
        rtts = self.round_trips()
        farthest_s = max(rtts.get(hop.address.peer) or 0.0 for hop in route)
        return min(timeout_s, search.newcomer_opens_s + NEWCOMER_TRIPS * farthest_s)

    async def to_blame(self, route: Sequence[RouteHop], error: HopRefused) -> set[PeerId]:
        """Who may be to blame that a ring over ``route`` was not opened: the hop that refused; or the one
        after it, if that is gone; or, if that can be reached, who of the two is trusted less, or both."""
        return await self._at_odds(route, error) or {error.gone or error.peer}

    async def _at_odds(self, route: Sequence[RouteHop], error: HopRefused) -> set[PeerId]:
        """Who may be to blame when a hop calls the next one gone and we can reach that; else nobody."""
        onward = next((hop for hop in route if hop.address.peer == error.gone), None)
        if onward is None:
            return set()
        try:
            await self._pool.get(onward.address, deadline_s=REACH_WITHIN_S)
        except ShoalError:
            return set()
        return set(self.finder.reputation.to_blame([error.peer, onward.address.peer], trio.current_time()))

    def seen_at(self, peer: PeerId) -> str | None:
        """The host that the channel to a peer leads to: empty if over a relay; ``None`` where there
        is no channel, or it tells no host."""
        channel = next((c for c in self._pool.all() if c.peer == peer and not c.closed), None)
        if channel is None:
            return None
        return "" if channel.way == "relayed" else channel.host or None

    async def reach(self, address: PeerAddress, within_s: float) -> Channel:
        """A channel to a peer. Raises ChannelClosed: it cannot be reached."""
        return await self._pool.get(address, deadline_s=within_s)

    async def close(self, ring: Ring) -> None:
        """Free the KV on every hop."""
        if self._rings.pop(ring.session, None) is None:
            return  # it was closed before: what was done is settled once
        # Whoever waits for a step hears at once; the hops are told after.
        ring.end()
        # What it has learnt of its hops is for the routes of later sessions.
        for hop, pace in ring.paces:
            if (step_s := pace.usual_s) is not None:
                self.finder.reputation.paced(hop.address.peer, step_s / len(hop.span))
        with trio.move_on_after(CLOSE_WITHIN_S, shield=True):
            await self._accounts.settle(ring.places.given, ring.places.bills)
        with trio.move_on_after(CLOSE_WITHIN_S, shield=True):
            await ring.aclose()

    @property
    def _bills(self) -> list[HopBill]:
        return [bill for ring in self._rings.values() for bill in ring.places.bills]

    def _stop(self, channel: Channel, stopped: PaymentStopped) -> None:
        for ring in list(self._rings.values()):
            if ring.uses(channel):
                ring.stop(stopped)

    def survived(self, ring: Ring, at: float, gap_s: float, lost: Sequence[PeerId], way: str) -> None:
        """Note that a session, now on ``ring``, has survived a loss; ``at`` is seconds since the epoch."""
        self.metrics.reroutes.labels(way).inc()
        self.trace.reroute(RerouteTrace(at, short_session(ring.session), gap_s, tuple(lost), way))

    def round_trips(self) -> dict[PeerId, float | None]:
        """Seconds to each peer that we have a channel to; ``None`` where it is not measured yet."""
        return {channel.peer: channel.rtt_s for channel in self._pool.all()}

    async def open_over(
        self,
        route: Sequence[RouteHop],
        shape: ModelShape,
        numerics: Numerics,
        tokens: int,
        timeout_s: float,
        codec: Codec | None,
        finder: RouteFinder | None = None,
        caches: Sequence[CacheKey] = (),
        *,
        background: bool = False,
    ) -> Ring:
        """A ring over this route and no other.

        Args:
            finder: tells whether a lost hop can be replaced; by default whoever finds routes over all peers.

        Raises:
            HopRefused: a hop does not take part.
        """
        finder = finder or self.finder
        wire = self._settings.wire
        ring = Ring(
            self._pool,
            shape,
            route,
            numerics=numerics,
            codec=codec or (None if wire == "auto" else wire),
            tokens=tokens,
            step_timeout_s=self._settings.step_timeout_s,
            trace=self.trace,
            reputation=self.finder.reputation,
            replaceable=lambda ring, peers: finder.possible(ring, shape, avoid=peers),
            caches=caches,
            terms=self._accounts.terms,
            background=background,
        )
        # Before it is opened: the replies come through here, by the session.
        self._rings[ring.session] = ring
        try:
            await ring.open(timeout_s)
            for hop in route:
                self.member.directory.used(hop.address.peer)
        except BaseException:
            await self.close(ring)
            raise
        return ring

    async def _watch(self) -> None:
        while True:
            began = trio.current_time()
            await trio.sleep(WATCH_EVERY_S)
            if trio.current_time() - began < 2 * WATCH_EVERY_S:  # else we were held up, and heard nobody
                for ring in list(self._rings.values()):
                    ring.losses.watch()

    async def _watch_attested(self) -> None:
        """Ask the hops of open sessions again what they run on; who does not show it any more is lost."""
        while True:
            await trio.sleep(ATTEST_EVERY_S)
            attested = self.attested
            peers = self._attested_hops()
            if attested is None or not peers:
                continue
            known = [a for a in self.member.alive() if a.peer in peers]
            with ends_alone(log, "asking hops what they run on"):
                await attested.refresh(known, RENEW_S)
            for ring in list(self._rings.values()):
                for index, hop in enumerate(ring.route):
                    shown = attested.of(hop.address.peer)
                    if hop.noise_key and (shown is None or shown.binding.noise_key != hop.noise_key):
                        ring.losses.lose(index, "it does not show any more what it runs on")

    def _at_once(self, channel: Channel, data: bytes) -> bool:
        return any(answer_at_once(self._rings, ends, channel, data) for ends in self.ends)

    async def _handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        match message:
            case Attested() if self.attested is not None:
                self.attested.questions.answered(channel, message, payload)
            case PaymentDue() if self._payments is not None:
                self._payments.due(channel, message)
            case Trained() | NotTrained():
                self.training.answered(channel, message, payload)
            case _ if isinstance(message, RingMessage):
                ring = self._rings.get(SessionId(message.session))
                if ring is not None:  # else it was closed a moment ago
                    ring.deliver(channel, message, payload)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} to a client")

    def _holds(self, channel: Channel) -> bool:
        rings = any(ring.uses(channel) for ring in self._rings.values())
        return rings or self.training.holds(channel)

    def _lost(self, channel: Channel, reason: str) -> None:
        self.training.lost(channel, reason)
        for ring in list(self._rings.values()):
            ring.losses.lost_channel(channel, reason)
