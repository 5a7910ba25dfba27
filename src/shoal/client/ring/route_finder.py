"""Finds routes through a swarm for one client, and remembers which peers are not to be counted on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from random import Random
from typing import TypeVar

import trio

from shoal.client.attestation.attested import AttestedPeers
from shoal.client.ring.hop import RouteHop
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
)
from shoal.option_values import price_of, show_coins
from shoal.routing.formats import ranked_numerics
from shoal.routing.prices import Candidate
from shoal.routing.repair import choose_repair
from shoal.routing.replace import ReplaceDecision, StepTimes, promised_s, worth_replacing
from shoal.routing.reputation import TRIALS, Reputation
from shoal.routing.route import Stage, choose_route
from shoal.swarm.announcement import Announcement, AskedPrice, candidate, numerics_of
from shoal.swarm.member import Member
from shoal.types import Format, ModelShape, Numerics, PeerId, Span, gaps

HEAR_WITHIN_S = 6.0
"""How long a client that has just come waits to hear of nodes that serve what it wants."""
HEAR_OF_OTHERS_S = 2.0
"""How long it waits to hear of others, when all whom it knows have refused."""
FORGIVEN_WITHIN_S = 4.0
"""How long it waits for peers that have just failed it, where there are no others."""

_Choice = TypeVar("_Choice")


class RouteFinder:
    """What one client knows of the peers that it may use.

    Args:
        round_trips: seconds to each peer that there is a channel to; ``None`` where it is not measured yet.
    """

    def __init__(
        self, member: Member, settings: Settings, round_trips: Callable[[], Mapping[PeerId, float | None]]
    ) -> None:
        self.member = member
        self.reputation = Reputation()
        self._settings = settings
        self._round_trips = round_trips
        self._suspects = Suspects()
        self._random = Random()
        self._only = frozenset(settings.only)
        self._most = price_of(settings.max_price)
        self._attested: AttestedPeers | None = None
        self._training = False

    def among_training(self) -> RouteFinder:
        """The same, with the same memory, of peers alone that train."""
        found = copy.copy(self)
        found._training = True
        return found

    def among_attested(self, attested: AttestedPeers) -> RouteFinder:
        """The same, with the same memory, of peers alone that have shown what they run on."""
        found = copy.copy(self)
        found._attested = attested
        return found

    def draw_trial(self) -> bool:
        """Whether a session is to try peers that have not proven themselves: by chance, one in a few."""
        return self._random.random() < TRIALS

    def find(
        self,
        shape: ModelShape,
        numerics: Numerics,
        tokens: int,
        avoid: set[PeerId],
        *,
        span: Span,
        trial: bool = False,
        segments: Sequence[float] | None = None,
        affinity: bytes = b"",
    ) -> list[RouteHop]:
        """The cheapest route over ``span``.

        Args:
            tokens: what every hop reserves KV for.
            avoid: peers that have just refused.
            trial: as :meth:`draw_trial` said.
            segments, affinity: as of :func:`shoal.routing.prices.price`.

        Raises:
            NoCoverage: blocks that nobody serves.
            Busy: every route is full.
            DigestMismatch: only another version of the model is served.
        """
        candidates, serving = self._candidates(shape, numerics, trial=trial, segments=segments)
        if not serving:
            self._explain_absence(shape, numerics, span)
        choose = partial(
            choose_route,
            candidates,
            shape.n_blocks,
            tokens,
            span=span,
            objective=self._settings.objective,
            pinned={PeerId(peer) for peer in self._settings.pin},
            rng=self._random,
            segments=segments,
            affinity=affinity,
        )
        return self._hops(self._trusting(choose, shape, serving, avoid), candidates, serving)

    def check_served(self, shape: ModelShape, numerics: Numerics, span: Span) -> None:
        """Raise what :meth:`find` raises where nobody serves any of the blocks by these numerics."""
        if not self.serving_by(shape, numerics):
            self._explain_absence(shape, numerics, span)

    def offers(self, shape: ModelShape, numerics: Numerics, span: Span) -> list[RouteHop]:
        """Every peer that computes these blocks by itself and is to be counted on, the quickest first."""
        candidates, serving = self._candidates(shape, numerics)
        now, doubtful = trio.current_time(), self._suspected(serving, CAUTIONS[0])
        fit = [
            one
            for one in candidates
            if one.span.start <= span.start and span.end <= one.span.end
            if one.peer not in doubtful and not self.reputation.distrusted(one.peer, now)
        ]
        fit.sort(key=lambda one: (one.step_s + one.wait_s) / one.trust)
        return self._hops([Stage(one.peer, span) for one in fit], candidates, serving)

    def replacements(self, ring: Ring, shape: ModelShape) -> list[Replacement]:
        """Who can take the place of a ring's lost hops. Raises as :meth:`find`.

        A hop that was just lost, or a peer that is distrusted, takes no place while a whole new route can be
        had without them: else two liars would go on taking turns in a gap that nobody else fits.
        """
        candidates, serving = self._candidates(shape, ring.numerics)
        stages = [Stage(hop.address.peer, hop.span) for hop in ring.route]
        choose = partial(choose_repair, candidates, stages, ring.lost, ring.rules.tokens)
        distrusted = {peer for peer in serving if self.reputation.distrusted(peer, trio.current_time())}
        doubtful = distrusted | {stages[index].peer for index in ring.lost}
        try:
            chosen = self._trusting(choose, shape, serving, doubtful)
        except (NoCoverage, Busy):
            if self.possible(ring, shape, avoid=doubtful):
                raise
            chosen = self._trusting(choose, shape, serving, set())
        return [
            Replacement(first, last, tuple(self._hops(new, candidates, serving)))
            for first, last, new in chosen
        ]

    def weigh(
        self, ring: Ring, shape: ModelShape, index: int, seen: StepTimes, *, cached: int, remaining: int
    ) -> ReplaceDecision:
        """Whether a hop that has become slow should be replaced. Arguments: those of ``worth_replacing``."""
        candidates, serving = self._candidates(shape, ring.numerics)
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
        return self.has_route(shape, ring.numerics, ring.rules.tokens, avoid, span=ring.span)

    def has_route(
        self, shape: ModelShape, numerics: Numerics, tokens: int, avoid: set[PeerId], *, span: Span
    ) -> bool:
        """Whether :meth:`find` finds one."""
        try:
            return bool(self.find(shape, numerics, tokens, avoid, span=span))
        except (NoCoverage, Busy, DigestMismatch):
            return False

    def suspect(self, peer: PeerId) -> None:
        """Do not count on this peer until it says something new, and for a while longer each time."""
        sequence, steps = self.member.directory.sequence(peer), self.reputation.steps(peer)
        self._suspects.add(peer, sequence, trio.current_time(), steps)

    async def wait_news(self, timeout_s: float) -> None:
        """Wait until an announcement says something new, not longer than ``timeout_s``."""
        with trio.move_on_after(timeout_s):
            await self.member.wait_changed()

    @property
    def among(self) -> str:
        """Of whom it is said that nobody serves something, where not all peers may be asked."""
        peers = f"the {len(self._only)} peers" if len(self._only) > 1 else "the one peer"
        only = f", of {peers} that only names" if self._only else ""
        only += f", for at most {show_coins(self._most)} a million tokens of a block" if self._most else ""
        trains = f"{only}, by a node that trains" if self._training else only
        return f"{trains}, by a machine that is on the list of measurements" if self._attested else trains

    async def served_numerics(
        self, shape: ModelShape, span: Span, format: Format | None = None
    ) -> list[Numerics]:
        """By what blocks ``span`` are served, in ``format`` where one is given, in the order to be tried.

        Where hops that promise other bits, or none, could only together cover the blocks, or be faster, they
        come last of their format.
        """
        await self.member.use(shape.digest)
        await self._hear_of(shape, span)
        proven = self.reputation.proven
        served = [
            (numerics, a.served.span, proven(PeerId(a.peer)))
            for a in self.serving(shape)
            if a.served and (numerics := numerics_of(a.served)) is not None
        ]
        nobody = Numerics(format or "fp32", "auto", "any")
        return ranked_numerics(served, span, format) or [nobody]

    async def _hear_of(self, shape: ModelShape, span: Span) -> None:
        """Wait, not long, until someone covers the blocks: a client that has just come knows few."""
        with trio.move_on_after(HEAR_WITHIN_S):
            asked = False
            while self._missing(shape, span):
                if not asked:
                    asked = True
                    await self._ask_who_serves(shape)
                    continue
                await self.member.wait_changed()

    async def hear_of_others(self, shape: ModelShape) -> bool:
        """Ask the swarm who else serves a model, when all whom a new client knows have refused.

        Returns:
            Whether somebody was heard of. At once, and that nobody was, where somebody has answered us
            before: we know the swarm then, and it is full.
        """
        known = self._known(shape)
        if any(self.reputation.proven(peer) for peer, _ in known):
            return False
        with trio.move_on_after(HEAR_OF_OTHERS_S):
            await self._ask_who_serves(shape)
            while self._known(shape) <= known:
                await self.member.wait_changed()
        return not self._known(shape) <= known

    async def wait_forgiven(self, shape: ModelShape, span: Span) -> bool:
        """Wait until a peer that has just failed us may be asked again, where others leave blocks uncovered.

        A busy node that was silent for seconds is no less there. Of one that fails again and again nothing is
        waited for, as it is avoided for longer each time.

        Returns:
            Whether one may be asked again.
        """
        if self._missing(shape, span):
            return False
        held = self.held_back(shape)
        free_at = min((self._suspects.free_at(peer) for peer in held), default=math.inf)
        if free_at > trio.current_time() + FORGIVEN_WITHIN_S:
            return False
        with trio.move_on_at(free_at):
            while self.held_back(shape) >= held:
                await self.member.wait_changed()
        return True

    def held_back(self, shape: ModelShape) -> set[PeerId]:
        """Who serves the model and is not asked even where there is no other."""
        return self._suspected({PeerId(a.peer): a for a in self.serving(shape)}, CAUTIONS[-1])

    def _known(self, shape: ModelShape) -> set[tuple[PeerId, str]]:
        return {(PeerId(a.peer), a.served.format) for a in self.serving(shape) if a.served}

    def _missing(self, shape: ModelShape, span: Span) -> list[Span]:
        # Of those alone over whom a route may go: one whose numerics nobody knows covers nothing, nor does
        # one that has paused or loads its first span.
        serving = [a.served for a in self.serving(shape) if a.served and a.served.share]
        spans = [served.span for served in serving if numerics_of(served) is not None]
        return gaps(spans, span.end, span.start)

    def serving(self, shape: ModelShape, format: Format | None = None) -> list[Announcement]:
        """Who serves a span of the model, in ``format`` when one is given, of the peers that may be asked."""
        serving = self.member.directory.serving(shape.digest, self.member.now(), format)
        return [
            a
            for a in serving
            if (not self._only or a.peer in self._only)
            and (a.served is None or a.served.has(shape.adapter))
            and not self._too_dear(a)
            and (not self._training or (a.served is not None and a.served.trains))
            # Whether it shows what it should is looked at when it has been asked: see _candidates.
            and (self._attested is None or (a.served is not None and a.served.attests))
        ]

    def _too_dear(self, announcement: Announcement) -> bool:
        price = announcement.served.price if announcement.served else None
        return price is not None and price.amount > self._most

    def serving_by(self, shape: ModelShape, numerics: Numerics) -> list[Announcement]:
        """Who serves a span of the model by these numerics, of the peers that may be asked."""
        return [
            a
            for a in self.serving(shape, numerics.format)
            if a.peer != self.member.network.peer and a.served and numerics.admits(numerics_of(a.served))
        ]

    async def _ask_who_serves(self, shape: ModelShape) -> None:
        with suppress(ChannelClosed, DeadlineExceeded, RemoteProtocolError):
            await self.member.find(shape.digest)

    def _candidates(
        self,
        shape: ModelShape,
        numerics: Numerics,
        *,
        trial: bool = False,
        segments: Sequence[float] | None = None,
    ) -> tuple[list[Candidate], dict[PeerId, Announcement]]:
        serving = {
            PeerId(a.peer): a
            for a in self.serving_by(shape, numerics)
            if self._attested is None or self._attested.verified(a) is not None
        }
        rtts = self._round_trips()
        here = self.member.coordinates
        offers = [candidate(peer, a.served, rtts.get(peer), here) for peer, a in serving.items() if a.served]
        now = trio.current_time()
        return self.reputation.believed(offers, now, trial=trial, segments=segments), serving

    def _trusting(
        self,
        choose: Callable[..., list[_Choice]],
        shape: ModelShape,
        serving: dict[PeerId, Announcement],
        avoid: set[PeerId],
    ) -> list[_Choice]:
        """What ``choose`` makes of the peers that are not suspected; with less caution where it must.

        Who is distrusted comes after all others, also after who was silent a moment ago: a busy node that did
        not answer in time is more likely to be back than a liar is to be honest.
        """
        distrusted = {peer for peer in serving if self.reputation.distrusted(peer, trio.current_time())}
        for caution in CAUTIONS if distrusted else ():
            with suppress(NoCoverage, Busy):
                return choose(avoid=avoid | distrusted | self._suspected(serving, caution))
        for caution in CAUTIONS[:-1]:
            with suppress(NoCoverage):
                return choose(avoid=avoid | self._suspected(serving, caution))
        try:
            return choose(avoid=avoid | self._suspected(serving, CAUTIONS[-1]))
        except NoCoverage as error:
            raise NoCoverage(
                error.message + self.among,
                missing=error.missing,
                check=error.check,
                next_command=f"shoal serve {shape.name} --span {error.missing[0]}",
            ) from None

    def _suspected(self, serving: dict[PeerId, Announcement], caution: Caution) -> set[PeerId]:
        now, held = trio.current_time(), self._suspects.holds
        return {peer for peer, a in serving.items() if held(peer, a.sequence, now, caution)}

    def _explain_absence(self, shape: ModelShape, numerics: Numerics, span: Span) -> None:
        now = self.member.now()
        if self._training:
            raise NoCoverage(
                f"blocks {span} of {shape.name} are served by nobody who trains",
                missing=[span],
                check="start nodes that train: they hold the weights in fp32",
                next_command=f"shoal serve {shape.name} --format fp32 --train on",
            )
        self._explain_price(shape, span)
        if self._attested is not None:
            self._explain_unattested(self._attested, shape, span)
        others = [a.served for a in self.member.alive() if a.served and a.served.model == shape.name]
        if self._only and not self.serving(shape):
            raise NoCoverage(
                f"blocks {span} of {shape.name} are served by nobody{self.among}",
                missing=[span],
                check="check the ids with shoal peers, and that these peers serve the model",
                next_command="shoal peers",
            )
        same = [served for served in others if served.digest == shape.digest]
        if shape.adapter is not None and same and not any(served.has(shape.adapter) for served in same):
            raise NoCoverage(
                f"nobody serves {shape.name} with the adapter {shape.adapter[:23]}… any more",
                missing=[span],
                check="start nodes with it, for every block",
                next_command=f"shoal serve {shape.name} --adapter PATH",
            )
        if any(served.format == numerics.format for served in same):
            check = "start the nodes in the same version of Shoal, with the same --format and --kv"
            if shape.kind == "graph":
                check = "ask with --fast where the nodes serve with it, and without it where they do not"
            served_by = sorted({served.numerics or "numerics that they do not name" for served in same})
            raise NoCoverage(
                f"nobody serves {shape.name} by the numerics {numerics}{self.among}, but by "
                f"{', '.join(served_by)}: these never share a session",
                missing=[span],
                check=check,
                next_command="shoal peers --json",
            )
        if same:
            raise NoCoverage(
                f"nobody serves {shape.name} in {numerics.format}{self.among}",
                missing=[span],
                check="choose a format in which it is served; shoal status shows them",
            )
        if others:
            raise DigestMismatch(
                f"the swarm serves {shape.name} as {others[0].digest[:23]}…, "
                f"and the one here is {shape.digest[:23]}…",
                check="decide which of the two you want, and remove the other",
                next_command=f"shoal models show {shape.name}",
            )
        heard = len(self.member.directory.alive(now))
        raise NoCoverage(
            f"blocks {span} of {shape.name} are served by nobody ({heard} other peers are known)",
            missing=[span],
            check="check that a node of this swarm is running and can be reached",
            next_command=f"shoal serve {shape.name}",
        )

    def _explain_price(self, shape: ModelShape, span: Span) -> None:
        """Raises NoCoverage: who serves the model asks more than may be paid."""
        serving = self.member.directory.serving(shape.digest, self.member.now())
        asked = [a.served.price.amount for a in serving if a.served and a.served.price and self._too_dear(a)]
        if asked and not self.serving(shape):
            limit = f"at most {show_coins(self._most)} may be paid" if self._most else "nothing is to be paid"
            raise NoCoverage(
                f"blocks {span} of {shape.name} are served only by nodes that ask {show_coins(min(asked))} "
                f"or more for a million tokens of a block, and {limit}",
                missing=[span],
                check="let more be paid with max-price, from a wallet and with pay-budget",
                next_command="shoal config",
            )

    def _explain_unattested(self, attested: AttestedPeers, shape: ModelShape, span: Span) -> None:
        """Raises NoCoverage: somebody serves the model, and nobody has shown what the list wants."""
        serving = self.member.directory.serving(shape.digest, self.member.now())
        if why := attested.why_not(serving):
            raise NoCoverage(
                f"blocks {span} of {shape.name} are served by nobody who shows a machine that is on the list "
                f"of measurements: {why}",
                missing=[span],
                check="start nodes with --attest on confidential machines, and compare what they show with "
                "the list",
                next_command="shoal peers --attested",
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
                *self._shown_of(stage.peer),
                price=_price_of(serving[stage.peer]),
            )
            for stage in stages
        ]

    def _shown_of(self, peer: PeerId) -> tuple[bytes, str]:
        """The key that the channel to a peer must have, and what the peer has shown."""
        shown = None if self._attested is None else self._attested.of(peer)
        return (b"", "") if shown is None else (shown.binding.noise_key, shown.shown)


def _price_of(announcement: Announcement) -> AskedPrice | None:
    """What a node asks, with no larger window than the blocks are worth that it serves."""
    served = announcement.served
    if served is None or served.price is None:
        return None
    return served.price.bounded(served.end - served.start)
