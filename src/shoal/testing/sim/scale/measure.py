"""What a swarm's state says at one moment: what it carries, what routes cost, what a node keeps."""

from __future__ import annotations

import statistics
import tracemalloc
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from shoal.errors import Busy, NoCoverage
from shoal.planning.throughput import ServingPeer, bound_speed, throughput
from shoal.routing.prices import Candidate
from shoal.routing.route import choose_route
from shoal.swarm.announcement import Announcement, Served, candidate, seal
from shoal.swarm.directory import Directory
from shoal.swarm.failure.probe import WATCHED
from shoal.swarm.views.rules import COMPARED, ENTRIES_ASKED, SWARM_STEADY, VIEW_WITHIN_S
from shoal.testing.sim.internet import ENVELOPE, MENTION_BYTES, OVERHEAD, REQUEST_BYTES
from shoal.testing.sim.mesh import DEGREE, LAZY
from shoal.testing.sim.scale.lookup import Kademlia, asked_s, left_tables
from shoal.testing.sim.scale.plan import ANNOUNCE_S, EXPIRY_S
from shoal.testing.sim.scale.population import HONEST, LEAVES, VANISHES, n_blocks_of
from shoal.testing.sim.scale.sessions import offers_of
from shoal.testing.sim.scale.state import RULES, ScaleNode
from shoal.testing.sim.scale.swarm import SESSION_TOKENS, ScaleSwarm
from shoal.testing.sim.scale.truth import least_s, route_s
from shoal.types import PeerId, Span

WORD_BYTES = 420
COMPARE_EVERY_S = 0.75 * ANNOUNCE_S
COMPARED_BYTES = 20
"""Of a peer that is named in a comparison."""


KnownWays = Literal["none", "coordinates", "measured"]


@dataclass(frozen=True, slots=True)
class SwarmTokens:
    """Tokens in a second, of all models together."""

    tokens_s: float
    optimum: float
    """What they would be if every machine could give its speed to any blocks of its model."""
    uncovered: int
    """Blocks that nobody serves."""


def carried(swarm: ScaleSwarm) -> SwarmTokens:
    """What those who serve carry, by what they are and not by what they say."""
    reached, most, uncovered = 0.0, 0.0, 0
    for model, nodes in enumerate(swarm.of_model):
        n_blocks = n_blocks_of(model)
        serving = [node for node in nodes.values() if node.serving and swarm.honest(node)]
        placed = [ServingPeer(node.span, node.speed, node.fits, node.carries) for node in serving]
        reached += throughput(placed, n_blocks)
        free = (bound_speed(node.speed, node.carries, Span(0, node.fits)) for node in serving)
        most += sum(free) / n_blocks
        uncovered += int((swarm.covered[model] == 0).sum())
    return SwarmTokens(reached, most, uncovered)


def quiet_bytes_s(swarm: ScaleSwarm) -> float:
    """What a node sends in a second beside gossip: probes, comparisons, words on the swarm's topic."""
    probes = WATCHED / (0.09 * EXPIRY_S) * 2 * REQUEST_BYTES
    view = statistics.mean(len(node.kept.words) for node in swarm.nodes.values())
    named = view / max(1, round(view / 128))
    compared = (2 * REQUEST_BYTES + COMPARED_BYTES * named + 2 * OVERHEAD) / COMPARE_EVERY_S
    swarms = 0.0
    if swarm.partial:
        # Two views differ, so a comparison brings as much as it may.
        compared += COMPARED * WORD_BYTES / COMPARE_EVERY_S
        copies = (DEGREE + 1) * (WORD_BYTES + ENVELOPE) + LAZY * MENTION_BYTES
        swarms = SWARM_STEADY / ANNOUNCE_S * copies
    return probes + compared + swarms


def gossiped_bytes(swarm: ScaleSwarm) -> float:
    """What all have sent so far as gossip."""
    return float(sum(topic.sent.sum() for topic in swarm.topics))


def kept_peers(swarm: ScaleSwarm) -> float:
    """Announcements that a node keeps, at the mean: of its model, and entries to others."""
    entries = RULES.entry_peers * (swarm.plan.models - 1) if swarm.partial else 0
    return entries + statistics.mean(len(node.kept.words) for node in swarm.nodes.values())


def kept_bytes(served: Served, peers: int = 200) -> float:
    """What an announcement takes in the product's directory, with all that belongs to it: measured."""
    tracemalloc.start()
    try:
        directory = Directory()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(peers):
            address = (f"/ip4/85.{number}.7.9/tcp/4001",)
            one = msgspec.structs.replace(served, awaited=number)
            said = Announcement(f"12D3KooW{number:044d}", 1, 0.0, 600.0, address, address, one, "shoal")
            directory.take(said, seal(said, lambda _: bytes(64)), 0.0, 0.0)
        return (tracemalloc.get_traced_memory()[0] - before) / peers
    finally:
        tracemalloc.stop()


@dataclass(frozen=True, slots=True)
class RouteCosts:
    """Routes from views, in shares of others: the median of all draws, and the 90th percentile."""

    whole: float
    """Of a route by the same rules from all announcements there are."""
    optimum: float
    """Of the least that any route could cost, with every way and speed known."""
    optimum_p90: float
    draws: int


def route_costs(swarm: ScaleSwarm, draws: int, ways: KnownWays) -> RouteCosts:
    """Have so many honest nodes choose a route from what they keep.

    Args:
        ways: what a node knows of the round trips to those whom it keeps.
    """
    honest = [n for n in swarm.nodes.values() if n.serving and swarm.population.kind[n.index] == HONEST]
    of_model: dict[int, list[ScaleNode]] = {}
    for node in honest:
        of_model.setdefault(node.model, []).append(node)
    whole: list[float] = []
    optimum: list[float] = []
    for _ in range(draws):
        client = swarm.chance.choice(honest)
        others = [node for node in of_model[client.model] if node is not client]
        kept = offers_of(client, swarm.events.now)
        known = [node for node in others if node.peer in kept]
        found, best = (_cost(swarm, client, nodes, ways) for nodes in (known, others))
        least = least_s(swarm.population, client.index, others, client.n_blocks) if others else float("inf")
        if np.isfinite([found, best, least]).all():
            whole.append(found / best)
            optimum.append(found / least)
    if not whole:
        return RouteCosts(float("nan"), float("nan"), float("nan"), 0)
    p90 = float(np.quantile(optimum, 0.9))
    return RouteCosts(statistics.median(whole), statistics.median(optimum), p90, len(whole))


def _cost(swarm: ScaleSwarm, client: ScaleNode, nodes: list[ScaleNode], ways: KnownWays) -> float:
    """Seconds of a step over the route that the client chooses of these; infinite where there is none."""
    population = swarm.population
    offers: list[Candidate] = []
    for node in nodes:
        rtt_s = 2 * float(population.way_s(client.index, node.index)) if ways == "measured" else None
        here = client.coordinates if ways == "coordinates" else None
        offers.append(candidate(node.peer, swarm.served(node), rtt_s, here))
    try:
        route = choose_route(offers, client.n_blocks, SESSION_TOKENS)
    except (NoCoverage, Busy):
        return float("inf")
    by_peer: dict[PeerId, ScaleNode] = {node.peer: node for node in nodes}
    return route_s(population, client.index, route, by_peer)


def entries_s(swarm: ScaleSwarm, count: int) -> list[float]:
    """Seconds until machines have heard of the peers of another model from those of it whom they know.

    Of these some are dead, and nobody on this machine's topic has said so. In a small swarm all know all.
    Infinite for a model of which nobody is left.
    """
    if not swarm.partial:
        return [0.0] * count
    population, now = swarm.population, swarm.events.now
    machines = list(swarm.nodes)
    there = (population.joins_at <= now) & ((population.ends_at > now) | (population.end != LEAVES))
    met = [np.flatnonzero(there & (population.model == model)).tolist() for model in range(swarm.plan.models)]
    found: list[float] = []
    for _ in range(count):
        machine, model = swarm.chance.choice(machines), swarm.chance.randrange(swarm.plan.models)
        if not swarm.of_model[model]:
            found.append(float("inf"))
            continue
        waited = 0.0
        while True:
            asked = swarm.chance.sample(met[model], min(ENTRIES_ASKED, len(met[model])))
            living = [other for other in asked if other in swarm.nodes]
            silent = any(
                int(population.end[other]) == VANISHES for other in asked if other not in swarm.nodes
            )
            trips = [asked_s(population, machine, other) for other in living]
            waited += VIEW_WITHIN_S if silent else max(trips, default=1.0)
            if living:
                break
        found.append(waited)
    return found


def lookups_s(swarm: ScaleSwarm, count: int) -> list[float]:
    """Seconds until machines have found models that they never asked for."""
    now, population = swarm.events.now, swarm.population
    living = set(swarm.nodes)
    met = [
        machine
        for machine in np.flatnonzero(population.joins_at <= now).tolist()
        if machine in living or not left_tables(population, machine)
    ]
    tables = Kademlia(population, met, living, swarm.chance)
    machines = list(living)
    found: list[float] = []
    for _ in range(count):
        model = swarm.chance.randrange(swarm.plan.models)
        providers = [index for index, node in swarm.of_model[model].items() if node.serving]
        found.append(tables.find_s(swarm.chance.choice(machines), model, providers))
    return found
