"""Finds routes through a swarm, opens rings over them, and remembers which peers are not to be counted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from random import Random
from typing import TypeVar

import trio

from shoal.client.ring.hop import HopRefused, RouteHop
from shoal.client.ring.places import Replacement
from shoal.client.ring.ring import Ring
from shoal.client.ring.suspects import CAUTIONS, Caution, Suspects
from shoal.config import Settings
from shoal.errors import (
    Busy,
    ChannelClosed,
    DeadlineExceeded,
    DigestMismatch,
    NoCoverage,
    RemoteProtocolError,
    ShoalError,
)
from shoal.metrics.meters import Metrics
from shoal.metrics.trace import RerouteTrace, Trace, shown
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.routing.formats import ranked
from shoal.routing.prices import Candidate
from shoal.routing.repair import choose_repair
from shoal.routing.replace import ReplaceDecision, StepTimes, promised_s, worth_replacing
from shoal.routing.reputation import REFUSAL, TRIALS, Reputation
from shoal.routing.route import Stage, choose_route
from shoal.swarm.announcement import Announcement, candidate
from shoal.swarm.directory import missing
from shoal.swarm.member import Member
from shoal.types import Format, ModelShape, PeerId, SessionId, Span
from shoal.wire.messages import Failed, Located, Message, Opened, Refused, Rerouted, Step

OPEN_ATTEMPTS = 64
"""Routes that are tried for one session."""
SEARCH_SHARE = 2
"""Times the time that hops have to open a session: how long routes are tried over peers that refuse or are
gone."""
NEWCOMER_OPENS_S = 0.75
"""What a route has to open the session, where there are others and a hop of it has not answered before."""
NEWCOMER_TRIPS = 10
"""The same in round trips to the farthest hop, beside it."""
REACH_WITHIN_S = 1.5
"""How long a hop that another calls gone has to show that it is not."""
HEAR_WITHIN_S = 6.0
"""How long a client that has just come waits to hear of nodes that serve what it wants."""
CLOSE_WITHIN_S = 2.0
WATCH_EVERY_S = 0.5

_Choice = TypeVar("_Choice")


class Rings:
    """The rings of one client. ``run`` must be running."""

    def __init__(self, network: Network, member: Member, settings: Settings) -> None:
        self.member = member
        self._network = network
        self._settings = settings
        self._rings: dict[SessionId, Ring] = {}
        self._suspects = Suspects()
        self.reputation = Reputation()
        self._random = Random()
        self.metrics = Metrics()
        self.trace = Trace()
        """Steps round whole rings, and the losses that sessions survived."""
        self._pool = ChannelPool(network, self._handle, self._lost, held=self._holds)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move messages, and watch the hops, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await self._pool.run(accept=False, task_status=task_status)

    async def open(
        self,
        shape: ModelShape,
        format: Format,
        tokens: int,
        *,
        span: Span | None = None,
        timeout_s: float | None = None,
    ) -> Ring:
        """A ring over the cheapest route that takes us.

        Args:
            tokens: what every hop reserves KV for.
            span: the blocks that the ring is to run; by default all of the model.
            timeout_s: for every hop to open the session; by default as set.

        Raises:
            NoCoverage: blocks that nobody serves.
            Busy: every route that was tried is full.
            DigestMismatch: only another version of the model is served.
        """
        timeout_s = timeout_s or self._settings.open_timeout_s
        span = span or Span(0, shape.n_blocks)
        refused: ShoalError | None = None
        avoid: set[PeerId] = set()
        doubtful: set[PeerId] = set()  # who had little time, or is at odds with another: asked again at last
        hurried = True
        trial = self._random.random() < TRIALS
        until = trio.current_time() + SEARCH_SHARE * timeout_s
        for _ in range(OPEN_ATTEMPTS):
            if refused is not None and trio.current_time() >= until:
                break
            try:
                route = self._route(shape, format, tokens, avoid, span=span, trial=trial)
            except (NoCoverage, Busy):
                if doubtful:
                    hurried, avoid, doubtful = False, avoid - doubtful, set()
                    continue
                if refused is not None:
                    raise refused from None
                raise
            has_s = self._opens_within_s(route, timeout_s) if hurried else timeout_s
            try:
                return await self._open(shape, format, tokens, route, has_s)
            except HopRefused as error:
                trial, refused = False, error.error
                at_odds = await self._at_odds(route, error)
                peers = at_odds or {error.gone or error.peer}
                out_of_reach = isinstance(refused, ChannelClosed | DeadlineExceeded)
                if at_odds or (out_of_reach and has_s < timeout_s):
                    doubtful |= peers
                elif out_of_reach:
                    self.suspect(error.gone or error.peer)  # gone and still listed: no refusal
                avoid |= peers
                for peer in peers:
                    self.reputation.failed(peer, trio.current_time(), REFUSAL)
        raise refused or NoCoverage("no route was found")

    def _opens_within_s(self, route: Sequence[RouteHop], timeout_s: float) -> float:
        """What a route has to open a session: less where a hop of it may well never answer."""
        if all(hop.proven for hop in route):
            return timeout_s
        rtts = self.round_trips()
        farthest_s = max(rtts.get(hop.address.peer) or 0.0 for hop in route)
        return min(timeout_s, NEWCOMER_OPENS_S + NEWCOMER_TRIPS * farthest_s)

    async def _at_odds(self, route: Sequence[RouteHop], error: HopRefused) -> set[PeerId]:
        """Who may be to blame when a hop calls the next one gone and we can reach that; else nobody."""
        onward = next((hop for hop in route if hop.address.peer == error.gone), None)
        if onward is None:
            return set()
        try:
            await self._pool.get(onward.address, deadline_s=REACH_WITHIN_S)
        except ShoalError:
            return set()
        return set(self.reputation.to_blame([error.peer, onward.address.peer], trio.current_time()))

    async def close(self, ring: Ring) -> None:
        """Free the KV on every hop."""
        self._rings.pop(ring.session, None)
        ring.end()
        for hop, pace in ring.paces:
            if (step_s := pace.usual_s) is not None:
                self.reputation.paced(hop.address.peer, step_s / len(hop.span))
        with trio.move_on_after(CLOSE_WITHIN_S, shield=True):
            await ring.aclose()

    def replacements(self, ring: Ring, shape: ModelShape) -> list[Replacement]:
        """Who can take the place of a ring's lost hops. Raises as :meth:`open`."""
        candidates, serving = self._candidates(shape, ring.format)
        stages = [Stage(hop.address.peer, hop.span) for hop in ring.route]
        choose = partial(choose_repair, candidates, stages, ring.lost, ring.rules.tokens)
        chosen = self._trusting(choose, shape, serving, set())
        return [
            Replacement(first, last, tuple(self._hops(new, candidates, serving)))
            for first, last, new in chosen
        ]

    def weigh(
        self, ring: Ring, shape: ModelShape, index: int, seen: StepTimes, *, cached: int, remaining: int
    ) -> ReplaceDecision:
        """Whether a hop that has become slow should be replaced. Arguments: those of ``worth_replacing``."""
        candidates, serving = self._candidates(shape, ring.format)
        return worth_replacing(
            candidates,
            [Stage(hop.address.peer, hop.span) for hop in ring.route],
            index,
            seen,
            ring.rules.tokens,
            cached=cached,
            remaining=remaining,
            avoid=self._suspected(serving, "words"),
        )

    def possible(self, ring: Ring, shape: ModelShape, *, avoid: set[PeerId]) -> bool:
        """Whether there is a route like a ring's without these peers."""
        try:
            return bool(self._route(shape, ring.format, ring.rules.tokens, avoid, span=ring.span))
        except (NoCoverage, Busy, DigestMismatch):
            return False

    def suspect(self, peer: PeerId) -> None:
        """Do not count on this peer until it says something new, and for a while longer each time."""
        self._suspects.add(peer, self.member.directory.sequence(peer), trio.current_time())

    def survived(self, ring: Ring, at: float, gap_s: float, lost: Sequence[PeerId], way: str) -> None:
        """Note that a session, now on ``ring``, has survived a loss; ``at`` is seconds since the epoch."""
        self.metrics.reroutes.labels(way).inc()
        self.trace.reroute(RerouteTrace(at, shown(ring.session), gap_s, tuple(lost), way))

    def round_trips(self) -> dict[PeerId, float | None]:
        """Seconds to each peer that we have a channel to; ``None`` where it is not measured yet."""
        return {channel.peer: channel.rtt_s for channel in self._pool.all()}

    async def wait_news(self, timeout_s: float) -> None:
        """Wait until an announcement says something new, not longer than ``timeout_s``."""
        with trio.move_on_after(timeout_s):
            await self.member.wait_changed()

    async def served_formats(self, shape: ModelShape) -> list[Format]:
        """The formats in which the model is served, in the order in which they are to be tried."""
        await self._hear_of(shape)
        serving = self.member.directory.serving(shape.digest, self.member.now())
        proven = self.reputation.proven
        served: list[tuple[Format, Span, bool]] = [
            (a.served.format, a.served.span, proven(PeerId(a.peer))) for a in serving if a.served
        ]
        nobody: list[Format] = ["fp32"]
        return ranked(served, shape.n_blocks) or nobody

    async def _hear_of(self, shape: ModelShape) -> None:
        """Wait, not long, until someone covers the model: a client that has just come knows few."""
        with trio.move_on_after(HEAR_WITHIN_S):
            asked = False
            while missing(self.member.directory, shape, self.member.now()):
                if not asked:
                    asked = True
                    with suppress(ChannelClosed, DeadlineExceeded, RemoteProtocolError):
                        await self.member.find(shape.digest)
                    continue
                await self.member.wait_changed()

    async def _open(
        self, shape: ModelShape, format: Format, tokens: int, route: Sequence[RouteHop], timeout_s: float
    ) -> Ring:
        ring = Ring(
            self._pool,
            shape,
            route,
            format=format,
            wire=self._settings.wire,
            tokens=tokens,
            step_timeout_s=self._settings.step_timeout_s,
            trace=self.trace,
            reputation=self.reputation,
            replaceable=lambda ring, peers: self.possible(ring, shape, avoid=peers),
        )
        self._rings[ring.session] = ring
        try:
            await ring.open(timeout_s)
            for hop in route:
                self.member.directory.used(hop.address.peer)
        except BaseException:
            await self.close(ring)
            raise
        return ring

    def _route(
        self,
        shape: ModelShape,
        format: Format,
        tokens: int,
        avoid: set[PeerId],
        *,
        span: Span,
        trial: bool = False,
    ) -> list[RouteHop]:
        candidates, serving = self._candidates(shape, format, trial=trial)
        if not serving:
            self._explain_absence(shape, format, span)
        choose = partial(
            choose_route,
            candidates,
            shape.n_blocks,
            tokens,
            span=span,
            objective=self._settings.objective,
            pinned={PeerId(peer) for peer in self._settings.pin},
            rng=self._random,
        )
        return self._hops(self._trusting(choose, shape, serving, avoid), candidates, serving)

    def _candidates(
        self, shape: ModelShape, format: Format, *, trial: bool = False
    ) -> tuple[list[Candidate], dict[PeerId, Announcement]]:
        serving = {
            PeerId(a.peer): a
            for a in self.member.directory.serving(shape.digest, self.member.now(), format)
            if a.peer != self._network.peer
        }
        rtts = self.round_trips()
        offers = [candidate(peer, a.served, rtts.get(peer)) for peer, a in serving.items() if a.served]
        return self.reputation.believed(offers, trio.current_time(), trial=trial), serving

    def _trusting(
        self,
        choose: Callable[..., list[_Choice]],
        shape: ModelShape,
        serving: dict[PeerId, Announcement],
        avoid: set[PeerId],
    ) -> list[_Choice]:
        """What ``choose`` makes of the peers that are not suspected; with less caution where it must."""
        for caution in CAUTIONS[:-1]:
            with suppress(NoCoverage):
                return choose(avoid=avoid | self._suspected(serving, caution))
        try:
            return choose(avoid=avoid | self._suspected(serving, CAUTIONS[-1]))
        except NoCoverage as error:
            error.next_command = f"shoal serve {shape.name} --span {error.missing[0]}"
            raise

    def _suspected(self, serving: dict[PeerId, Announcement], caution: Caution) -> set[PeerId]:
        now, held = trio.current_time(), self._suspects.holds
        return {peer for peer, a in serving.items() if held(peer, a.sequence, now, caution)}

    def _explain_absence(self, shape: ModelShape, format: Format, span: Span) -> None:
        now = self.member.now()
        others = [a.served for a in self.member.alive() if a.served and a.served.model == shape.name]
        if any(served.digest == shape.digest for served in others):
            raise NoCoverage(
                f"nobody serves {shape.name} in {format}",
                missing=[span],
                check="shoal status shows in which formats it is served",
            )
        if others:
            raise DigestMismatch(
                f"the swarm serves {shape.name} as {others[0].digest[:23]}…, "
                f"and the one here is {shape.digest[:23]}…",
                check="which of the two is the one you want; remove the other",
                next_command=f"shoal models show {shape.name}",
            )
        heard = len(self.member.directory.alive(now))
        raise NoCoverage(
            f"blocks {span} of {shape.name} are served by nobody ({heard} other peers are known)",
            missing=[span],
            check="whether a node of this swarm is up and can be reached: shoal status",
            next_command=f"shoal serve {shape.name}",
        )

    def _hops(
        self,
        stages: Sequence[Stage],
        candidates: Sequence[Candidate],
        serving: dict[PeerId, Announcement],
    ) -> list[RouteHop]:
        known = {candidate.peer: candidate for candidate in candidates}
        return [
            RouteHop(
                serving[stage.peer].address,
                stage.span,
                promised_s(known[stage.peer], stage.span),
                self.reputation.proven(stage.peer),
            )
            for stage in stages
        ]

    async def _watch(self) -> None:
        while True:
            began = trio.current_time()
            await trio.sleep(WATCH_EVERY_S)
            if trio.current_time() - began < 2 * WATCH_EVERY_S:  # else we were held up, and heard nobody
                for ring in list(self._rings.values()):
                    ring.watch()

    async def _handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        match message:
            case Opened() | Refused() | Rerouted() | Located() | Step() | Failed():
                ring = self._rings.get(SessionId(message.session))
                if ring is not None:  # else it was closed a moment ago
                    ring.deliver(channel, message, payload)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} to a client")

    def _holds(self, channel: Channel) -> bool:
        return any(ring.uses(channel) for ring in self._rings.values())

    def _lost(self, channel: Channel, reason: str) -> None:
        for ring in list(self._rings.values()):
            ring.lost_channel(channel, reason)
