"""Clients: they find routes, are refused or served, remember it, and find better ones.

What they believe and choose is the product's; what opening a session and a step take is the machines'.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from shoal.client.ring.rings import NEWCOMER_OPENS_S, NEWCOMER_TRIPS, OPEN_ATTEMPTS, PATIENCE
from shoal.client.ring.suspects import CAUTIONS, Caution, Suspects
from shoal.errors import Busy, NoCoverage
from shoal.routing.prices import HOP_S, ROW_SHARE, Candidate
from shoal.routing.replace import PREFILL
from shoal.routing.reputation import REFUSAL, TRIALS, Reputation
from shoal.routing.route import Stage, choose_route
from shoal.swarm.announcement import candidate
from shoal.testing.sim.scale.population import CONE, HONEST, REFUSER, SYMMETRIC
from shoal.testing.sim.scale.state import HeardWord, ScaleNode
from shoal.testing.sim.scale.swarm import SESSION_TOKENS, ScaleSwarm
from shoal.testing.sim.scale.truth import block_s
from shoal.types import PeerId, Span

PROMPT, ANSWER = 128, 64
"""Tokens of a session."""
CLIENTS = 400
"""Machines that ask, at most: a node in five, where there are fewer."""
HANDSHAKE_TRIPS = 2
"""Round trips until a channel stands: TCP, and Noise with the first message behind it."""


@dataclass(slots=True)
class Client:
    """What one client has seen."""

    node: ScaleNode
    reputation: Reputation = field(default_factory=Reputation)
    suspects: Suspects = field(default_factory=Suspects)
    rtts: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    """To those that it has a channel to."""


@dataclass(slots=True)
class ServedSession:
    """One session."""

    began: float
    first_s: float
    """Until its first token; infinite where it found no route."""
    attempts: int
    step_s: float = 0.0


class Clients:
    """All clients, and what became of their sessions."""

    def __init__(self, swarm: ScaleSwarm) -> None:
        self._swarm = swarm
        self._clients: list[Client] = []
        self.sessions: list[ServedSession] = []

    def begin(self) -> None:
        """Ask from now on."""
        self._swarm.events.after(1.0, self._ask)

    def _ask(self) -> None:
        swarm = self._swarm
        swarm.events.after(swarm.chance.expovariate(swarm.plan.sessions_s), self._ask)
        client = self._draw()
        if client is not None:
            self.sessions.append(self._session(client))

    def _draw(self) -> Client | None:
        """One of the clients; where one has gone, another takes its place."""
        swarm = self._swarm
        self._clients = [client for client in self._clients if client.node.alive]
        wanted = min(CLIENTS, max(1, len(swarm.nodes) // 5))
        if len(self._clients) < wanted:
            node = swarm.nodes[swarm.chance.choice(list(swarm.nodes))]
            if swarm.population.kind[node.index] != HONEST or not node.serving:
                return None
            self._clients.append(Client(node))
            return self._clients[-1]
        return swarm.chance.choice(self._clients)

    def _session(self, client: Client) -> ServedSession:
        swarm = self._swarm
        began = now = swarm.events.now
        trial, patience_s = swarm.chance.random() < TRIALS, NEWCOMER_OPENS_S
        avoid: set[PeerId] = set()
        for attempt in range(1, OPEN_ATTEMPTS + 1):
            words = offers_of(client.node, began)
            try:
                route = self._route(client, words, avoid, now, trial=trial)
            except (NoCoverage, Busy):
                return ServedSession(began, float("inf"), attempt)
            proven = all(client.reputation.proven(stage.peer) for stage in route)
            farthest_s = max(client.rtts.get(stage.peer, 0.0) for stage in route)
            within_s = 10.0 if proven else patience_s + NEWCOMER_TRIPS * farthest_s
            took_s, failed = self._open(client, route, within_s)
            now += took_s
            if failed is None:
                return self._run(client, route, began, now, attempt)
            trial = False
            if took_s >= within_s:  # it was silent
                patience_s *= PATIENCE
                if proven:
                    client.suspects.add(failed, words[failed].sequence, now)
            avoid.add(failed)
            client.reputation.failed(failed, now, REFUSAL)
        return ServedSession(began, float("inf"), OPEN_ATTEMPTS)

    def _route(
        self, client: Client, words: dict[PeerId, HeardWord], avoid: set[PeerId], now: float, *, trial: bool
    ) -> list[Stage]:
        """As :class:`shoal.client.ring.route_finder.RouteFinder` finds it."""
        here = client.node.coordinates
        offers = [candidate(peer, word.served, client.rtts.get(peer), here) for peer, word in words.items()]
        believed = client.reputation.believed(offers, now, trial=trial)
        choose = partial(self._choose, client, believed)
        distrusted = {peer for peer in words if client.reputation.distrusted(peer, now)}
        for caution in CAUTIONS if distrusted else ():
            try:
                return choose(avoid | distrusted | self._suspected(client, words, now, caution))
            except (NoCoverage, Busy):
                continue
        for caution in CAUTIONS[:-1]:
            try:
                return choose(avoid | self._suspected(client, words, now, caution))
            except NoCoverage:
                continue
        return choose(avoid | self._suspected(client, words, now, CAUTIONS[-1]))

    def _choose(self, client: Client, believed: list[Candidate], avoid: Collection[PeerId]) -> list[Stage]:
        n_blocks, chance = client.node.n_blocks, self._swarm.chance
        return choose_route(believed, n_blocks, SESSION_TOKENS, avoid=avoid, rng=chance)

    def _suspected(
        self, client: Client, words: dict[PeerId, HeardWord], now: float, caution: Caution
    ) -> set[PeerId]:
        holds = client.suspects.holds
        return {peer for peer, word in words.items() if holds(peer, word.sequence, now, caution)}

    def _open(self, client: Client, route: list[Stage], within_s: float) -> tuple[float, PeerId | None]:
        """All hops at once: how long it takes, and who did not take part."""
        longest_s, stuck_s, stuck = 0.0, within_s, None
        for stage in route:
            node = self._swarm.by_peer.get(stage.peer)
            opened_s = within_s if node is None else self._opened_s(client, node)
            longest_s = max(longest_s, opened_s)
            refuses = node is None or opened_s > within_s or not self._takes(node, stage)
            if refuses and (stuck is None or opened_s < stuck_s):
                stuck_s, stuck = min(opened_s, within_s), stage.peer
        return (longest_s, None) if stuck is None else (stuck_s, stuck)

    def _takes(self, node: ScaleNode, stage: Stage) -> bool:
        """Whether a node takes a session in."""
        return self._swarm.population.kind[node.index] != REFUSER and serves(node, stage.span)

    def _opened_s(self, client: Client, node: ScaleNode) -> float:
        """Until a hop has answered: at once over a channel, else by what its router lets through."""
        population = self._swarm.population
        rtt_s = 2 * float(population.way_s(client.node.index, node.index))
        if node.peer in client.rtts:
            return rtt_s
        client.rtts[node.peer] = rtt_s
        nat = population.nat[node.index]
        # Both meet at a relay first; between two symmetric routers it goes on over that.
        meeting_s = rtt_s * 1.5 if nat != 0 and population.nat[client.node.index] != 0 else 0.0
        if nat in (CONE, SYMMETRIC) and meeting_s:
            return meeting_s + HANDSHAKE_TRIPS * rtt_s + rtt_s
        return HANDSHAKE_TRIPS * rtt_s + rtt_s

    def _run(
        self, client: Client, route: list[Stage], began: float, now: float, attempts: int
    ) -> ServedSession:
        """It is served: what its first token and its steps take, and what the client makes of them."""
        swarm = self._swarm
        hops = [swarm.by_peer[stage.peer] for stage in route]
        each = [block_s(hop) * (1 + ROW_SHARE * hop.sessions) for hop in hops]
        computing = sum(s * len(stage.span) for s, stage in zip(each, route, strict=True))
        machines = [client.node.index, *(hop.index for hop in hops), client.node.index]
        ways = sum(float(swarm.population.way_s(a, b)) for a, b in pairwise(machines))
        first_s = now - began + computing * PROMPT / PREFILL + ways + HOP_S * len(hops)
        step_s = computing + ways + HOP_S * len(hops)
        for hop in hops:
            hop.sessions += 1
        ends = now + first_s + ANSWER * step_s
        swarm.events.at(ends, self._ends, client, hops, each)
        return ServedSession(began, first_s, attempts, step_s)

    def _ends(self, client: Client, hops: list[ScaleNode], each: list[float]) -> None:
        for hop, seconds in zip(hops, each, strict=True):
            hop.sessions -= 1
            client.reputation.paced(hop.peer, seconds)
        for _ in range(ANSWER):
            client.reputation.answered([hop.peer for hop in hops])


def offers_of(node: ScaleNode, now: float) -> dict[PeerId, HeardWord]:
    """Who serves a node's model, of those in its view."""
    model = node.model
    return {
        word.peer: word
        for word in node.kept.words.values()
        if word.model == model and word.placed is not None and word.until > now
    }


def serves(node: ScaleNode, span: Span) -> bool:
    """Whether a node runs these blocks in fact."""
    return node.serving and node.span.start <= span.start and span.end <= node.span.end
