"""The swarm: machines come, announce, hear, move and go. Their decisions are the product's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from shoal.errors import RemoteProtocolError
from shoal.node.placing.placement import LOOK_EVERY_S, REST_S, SETTLE_S
from shoal.planning.level import HELPERS, look_period_s
from shoal.planning.placement import choose_move, choose_span, uncovered_by
from shoal.planning.throughput import ServingPeer
from shoal.routing.coordinates import LEAST_ERROR, Coordinates
from shoal.routing.shortest_path import IndexArray
from shoal.swarm import gossip_rate
from shoal.swarm.announcement import Announcement, Served, carried_tokens_s, read, seal
from shoal.swarm.views.rules import speaking_period_s, word_lifetime_s
from shoal.testing.sim.peers import EPOCH
from shoal.testing.sim.scale.deaths import CLOSED_S, believed_after_s, noticed_s
from shoal.testing.sim.scale.events import Events
from shoal.testing.sim.scale.figures import Seen
from shoal.testing.sim.scale.mesh import TopicMesh
from shoal.testing.sim.scale.plan import ANNOUNCE_S, EXPIRY_S, ScalePlan
from shoal.testing.sim.scale.population import (
    ABSURD,
    FAST_LIAR,
    HONEST,
    LEAVES,
    VANISHES,
    make_population,
    n_blocks_of,
)
from shoal.testing.sim.scale.state import RULES, HeardWord, ScaleNode
from shoal.testing.sim.scale.truth import block_s
from shoal.types import PeerId, Span

HIDDEN = 4096
TOKENS = 65536
SESSION_TOKENS = 512
"""What a session reserves."""
LIE = 20.0
"""How many times as fast as it is a liar says to be."""
TICK_S = 0.05
"""Words that arrive within so much time are taken together."""
ENTER_S = 1.5
"""From a machine's start until it has heard of its model's peers."""
UNHEARD_S = 15.0
"""Until the neighbours of a machine that is silent have given its connections up."""
TOLD_S = (15.0, 45.0)
"""When a newcomer has compared notes with its neighbours: it hears of those who were gone before it came."""
PINGS = 40
"""To neighbours, while a machine loads: four each 2.7 s."""
FIRST, PINGS_OF_FIRST = 100, 200
"""Machines with which the swarm began, and how many ways each had measured before others came."""
LIED = Coordinates(error=LEAST_ERROR)
"""Where liars say that they are: in the middle of everybody, and sure of it."""
KNOWN_AT_FIRST = 2 * RULES.drawn_peers
"""Words of which a view is made at the start, where there are more."""
STRANGERS = 0.25
"""Share of the neighbours that serve other models."""
UNNOTICED_S = 2 * EXPIRY_S
"""A dead peer that is known for so long is one that nobody misses."""
HOLES_EVERY_S = 10.0
MISSED_S, MISSED_DEATH_S = 30.0, 15.0
"""Within what time comparisons bring what gossip lost: of two parts of a view one at a time, and deaths
whatever the part."""


class ScaleSwarm:
    """All machines, living and dead, by their number in the population."""

    def __init__(self, plan: ScalePlan) -> None:
        self.plan = plan
        self.population = make_population(plan)
        self.events = Events()
        self.chance = Random(plan.seed)
        self.noise = np.random.default_rng([plan.seed, 1])
        self.seen = Seen()
        self.partial = plan.nodes >= RULES.partial_from
        self.nodes: dict[int, ScaleNode] = {}
        """Those that live, and have come."""
        self.by_peer: dict[PeerId, ScaleNode] = {}
        self.of_model: list[dict[int, ScaleNode]] = [{} for _ in range(plan.models)]
        self.covered: list[IndexArray] = [np.zeros(n_blocks_of(m), np.intp) for m in range(plan.models)]
        """By model and block, how many serve it in fact."""
        models: list[int] = self.population.model.tolist() if self.partial else [0] * len(self.population)
        capacity = np.bincount(models, minlength=plan.models if self.partial else 1)
        self.topics = [TopicMesh(self.population, int(count), self.chance, self.noise) for count in capacity]
        self._topic_of = models
        self._suspected = set[int]()

    def begin(self) -> None:
        """Those who are there at the start, and what is going to happen."""
        there = int((self.population.joins_at == 0).sum())
        words: list[list[HeardWord]] = [[] for _ in range(self.plan.models)]
        for index in range(there):
            node = self._enter(index)
            placed = [word.placed for word in words[node.model] if word.placed is not None]
            node.span = self._first_span(node, placed)
            self._serve(node)
            words[node.model].append(self._word(node))
        everyone = [word for of_model in words for word in of_model]
        for node in list(self.nodes.values()):
            known = words[node.model] if self.partial else everyone
            for word in self.chance.sample(known, min(len(known), KNOWN_AT_FIRST)):
                node.hear(word)
            self.events.at(self.chance.random() * self._period_s(node), self._speak, node)
            self._look_later(node)
        self._find_places()
        for index in range(there, len(self.population)):
            self.events.at(float(self.population.joins_at[index]), self._join, index)
        for index in np.flatnonzero(self.population.ends_at < self.plan.ends_at).tolist():
            self.events.at(float(self.population.ends_at[index]), self._end, index)
        for model in range(self.plan.models):
            self.events.at(self.chance.random() * HOLES_EVERY_S, self._watch_holes, model)

    def topic(self, node: ScaleNode) -> TopicMesh:
        """Where a node speaks."""
        return self.topics[self._topic_of[node.index]]

    def honest(self, node: ScaleNode) -> bool:
        """Whether it serves at all: a liar about its speed does, slowly."""
        return self.population.kind[node.index] in (HONEST, FAST_LIAR)

    # --- coming

    def _enter(self, index: int) -> ScaleNode:
        population = self.population
        model = int(population.model[index])
        n_blocks = n_blocks_of(model)
        fits = max(1, min(n_blocks, round(float(population.share[index]) * n_blocks)))
        carries = float(population.up_bytes_s[index]) / (HIDDEN * 2)
        speed = float(population.speed[index])
        node = ScaleNode(index, model, n_blocks, speed, fits, carries, partial=self.partial)
        self.nodes[index] = self.of_model[model][index] = self.by_peer[node.peer] = node
        node.place = self.topic(node).join(index)
        return node

    def _first_span(self, node: ScaleNode, placed: list[ServingPeer]) -> Span:
        if self.population.kind[node.index] == FAST_LIAR:  # it cares for no model, and is anywhere
            start = self.chance.randrange(node.n_blocks - node.fits + 1)
            return Span(start, start + node.fits)
        return choose_span(placed, node.n_blocks, node.fits, chance=self.chance)

    def _join(self, index: int) -> None:
        if self.population.ends_at[index] > self.events.now + ENTER_S:
            self.events.after(ENTER_S, self._arrive, index)

    def _arrive(self, index: int) -> None:
        """It has found its way in: it hears what some of its model know, and says what it will serve."""
        node = self._enter(index)
        others = self.of_model[node.model] if self.partial else self.nodes
        tellers = [others[one] for one in self.topic_members(node, 3) if one in others and one != index]
        told: dict[PeerId, HeardWord] = {}
        for teller in tellers:
            told |= teller.kept.words
        for word in told.values():
            if word.until > self.events.now:
                node.hear(word)
        node.span = self._first_span(node, node.placed(self.events.now))
        node.going = node.span
        self._say(node)
        self.events.after(float(self.population.load_s[index]), self._loaded, node)
        for after in TOLD_S:
            self.events.after(after, self._told, node)

    def _told(self, node: ScaleNode) -> None:
        for word in [word for word in node.kept.words.values() if word.index not in self.nodes]:
            node.kept.drop(word.peer, word.sequence)

    def topic_members(self, node: ScaleNode, count: int) -> list[int]:
        """The numbers of some machines on the node's topic."""
        topic = self.topic(node)
        return [int(topic.machines[place]) for place in topic.some(count + 1)]

    def _find_places(self) -> None:
        """Where those are who are there at the start: as it grew, each measured the ways to some before."""
        nodes = list(self.nodes.values())
        first = nodes[:FIRST]
        for _ in range(PINGS_OF_FIRST):
            for node in first:
                self._measure(node, self.chance.choice(first))
        for number, node in enumerate(nodes[FIRST:], FIRST):
            for _ in range(PINGS):
                self._measure(node, nodes[self.chance.randrange(number)])

    def _ping(self, node: ScaleNode) -> None:
        """Measure the way to a neighbour, or to a peer of another model."""
        topic = self.topic(node)
        places = topic.neighbours(node.place)
        if not places or self.chance.random() < STRANGERS:
            topic = self.chance.choice(self.topics)
            places = topic.some(1)
        other = self.nodes.get(int(topic.machines[self.chance.choice(places)])) if places else None
        if other is not None:
            self._measure(node, other)

    def _measure(self, node: ScaleNode, other: ScaleNode) -> None:
        """So it is a little clearer where the node is."""
        if other is not node:
            there = LIED if self.population.kind[other.index] == FAST_LIAR else other.coordinates
            rtt_s = 2 * float(self.population.way_s(node.index, other.index))
            rtt_s *= self.chance.uniform(0.95, 1.15)
            node.position.measured(there, rtt_s, self.chance)

    def _loaded(self, node: ScaleNode) -> None:
        if not node.alive:
            return
        for _ in range(PINGS):
            self._ping(node)
        node.going = None
        self._serve(node)
        self._say(node, news=True)
        self.events.after(self._period_s(node), self._speak, node)
        self._look_later(node)

    def _serve(self, node: ScaleNode) -> None:
        node.serving = True
        if self.honest(node):
            self.covered[node.model][node.span.start : node.span.end] += 1

    def _unserve(self, node: ScaleNode, span: Span) -> int:
        """It serves ``span`` no more; how many blocks nobody serves now."""
        if not self.honest(node):
            return 0
        covered = self.covered[node.model][span.start : span.end]
        covered -= 1
        return int((covered == 0).sum())

    # --- speaking and hearing

    def _period_s(self, node: ScaleNode) -> float:
        peers = 1 + node.kept.peers
        period = speaking_period_s if self.partial else gossip_rate.refresh_s
        return period(ANNOUNCE_S, peers) * self.chance.uniform(0.9, 1.1)

    def _speak(self, node: ScaleNode) -> None:
        if node.alive and node.serving:
            self._say(node)
            self.events.after(self._period_s(node), self._speak, node)

    def served(self, node: ScaleNode) -> Served:
        """What a node says of itself, true or not."""
        kind = int(self.population.kind[node.index])
        lie = LIE if kind == FAST_LIAR else 1.0
        blocks = node.n_blocks * (4 if kind == ABSURD else 1)
        free = TOKENS - SESSION_TOKENS * node.sessions if node.serving else 0
        step_s = self.step_s(node) / lie
        going = node.going
        return Served(
            f"model-{node.model}",
            f"sha256:{node.model:064x}",
            blocks,
            HIDDEN,
            8192,
            32000,
            node.span.start,
            node.span.end,
            "int8",
            TOKENS if node.serving else 0,
            max(0, free),
            node.sessions,
            step_s * 1e3,
            speed=node.speed * lie,
            fits=node.fits,
            next_start=going.start if going else 0,
            next_end=going.end if going else 0,
            share=1.0 if node.serving else 0.0,
            numerics="n1/int8/auto/rows",
            link_bytes_s=node.carries * HIDDEN * 2,
            coordinates=(LIED if kind == FAST_LIAR else node.coordinates).announced(),
        )

    def step_s(self, node: ScaleNode) -> float:
        """Seconds of a decode step through a node's span, in fact."""
        return block_s(node) * len(node.span)

    def _word(self, node: ScaleNode) -> HeardWord:
        now, served = self.events.now, self.served(node)
        wall = EPOCH + now
        node.sequence = max(node.sequence + 1, round(wall * 1000))
        peers = 1 + node.kept.peers
        lifetime_s = gossip_rate.lifetime_s(EXPIRY_S, peers)
        if self.partial:
            lifetime_s = word_lifetime_s(EXPIRY_S, peers, self.plan.models, RULES.entry_peers)
        address = f"/ip4/{20 + node.index % 200}.{node.index // 200 % 250}.7.9/tcp/4001"
        said = Announcement(
            node.peer, node.sequence, wall, wall + lifetime_s, (address,), (address,), served, "shoal"
        )
        raw = seal(said, lambda _: bytes(64))
        word = HeardWord(node.index, node.peer, node.model, served, node.sequence, len(raw), now + lifetime_s)
        try:
            read(raw)
        except RemoteProtocolError:
            word.absurd = True
        word.absurd |= served.n_blocks != node.n_blocks
        carries = carried_tokens_s(served)
        if node.serving:
            word.placed = ServingPeer(node.span, served.speed, node.fits, carries)
        if node.going is not None:
            word.there = ServingPeer(node.going, served.speed, node.fits, carries)
        return word

    def _say(self, node: ScaleNode, *, news: bool = False) -> None:
        """Announce: the word is with each of the topic in its time."""
        topic, word = self.topic(node), self._word(node)
        arrives = topic.flood(node.place, word.size)
        if news and not word.absurd:
            self.seen.news(self._delays(topic, arrives, node))
        self.spread(topic, arrives, MISSED_S, self._hear, word)

    def _delays(self, topic: TopicMesh, arrives: Any, node: ScaleNode) -> Any:
        """Seconds until each who needs the news has it."""
        living = [other.place for other in self.of_model[node.model].values() if other is not node]
        delays = arrives[living]
        return np.where(np.isfinite(delays), delays, MISSED_S)

    def spread(
        self, topic: TopicMesh, arrives: Any, missed_s: float, hear: Callable[..., None], *about: Any
    ) -> None:
        """Have a message taken in by all, each when it comes; by those who missed it within ``missed_s``."""
        missed = np.flatnonzero(~np.isfinite(arrives))
        ticks = np.ceil(arrives / TICK_S)
        ticks[missed] = np.ceil(self.noise.uniform(0, missed_s, len(missed)) / TICK_S)
        order = np.argsort(ticks, kind="stable")
        machines = topic.machines[: len(arrives)][order].tolist()
        sorted_ticks = ticks[order]
        edges = [0, *(np.flatnonzero(np.diff(sorted_ticks)) + 1).tolist(), len(machines)]
        for begin, end in pairwise(edges):
            self.events.after(float(sorted_ticks[begin]) * TICK_S, hear, machines[begin:end], *about)

    def _hear(self, machines: list[int], word: HeardWord) -> None:
        nodes = self.nodes
        for machine in machines:
            node = nodes.get(machine)
            if node is not None:
                node.hear(word)

    # --- moving

    def _look_later(self, node: ScaleNode) -> None:
        every_s = look_period_s(LOOK_EVERY_S, self._peers(node))
        self.events.after(every_s * self.chance.uniform(0.5, 1.5), self._look, node, True)

    def _peers(self, node: ScaleNode) -> int:
        """How many serve its model, as far as it knows."""
        return 1 + node.kept.peers if self.partial else len(self.of_model[node.model])

    def _watch_holes(self, model: int) -> None:
        """Some of those who see that a block is served by nobody look at once."""
        if not self.covered[model].all() and (nodes := list(self.of_model[model].values())):
            for node in nodes:
                if self.chance.random() < HELPERS / len(nodes):
                    self.events.after(self.chance.random() * HOLES_EVERY_S, self._look, node, False)
        self.events.after(HOLES_EVERY_S, self._watch_holes, model)

    def _look(self, node: ScaleNode, again: bool) -> None:
        if again and node.alive:
            self._look_later(node)
        if not self._may_move(node):
            return
        span = self._better(node)
        if span is not None:
            node.going = span
            self._say(node)
            self.events.after(SETTLE_S, self._claim, node, span)

    def _may_move(self, node: ScaleNode) -> bool:
        return (
            node.alive
            and node.serving
            and node.going is None
            and self.population.kind[node.index] == HONEST
            and self.events.now >= node.rests_until
        )

    def _better(self, node: ScaleNode, claimed: Span | None = None) -> Span | None:
        here = ServingPeer(node.span, node.speed, node.fits, node.carries)
        before = None if claimed is None else node.peer
        move = choose_move(
            node.placed(self.events.now, before),
            here,
            node.n_blocks,
            chance=self.chance,
            peers=self._peers(node),
            claimed=claimed,
            keeping=node.keeping(self.events.now, before),
        )
        return None if move is None or move.span == node.span else move.span

    def _claim(self, node: ScaleNode, span: Span) -> None:
        if not node.alive:
            return
        if self._better(node, span) == span:
            self.events.after(float(self.population.load_s[node.index]), self._moved, node, span)
        else:
            node.going = None
            node.rests_until = self.events.now + SETTLE_S
            self._say(node)

    def _moved(self, node: ScaleNode, span: Span) -> None:
        if not node.alive:
            return
        if uncovered_by(node.keeping(self.events.now), node.span, span):
            node.going = None  # while it loaded, others have gone
            self._say(node)
            return
        old, node.span, node.going = node.span, span, None
        self._serve(node)
        node.moves += 1
        node.rests_until = self.events.now + REST_S
        self.seen.move(self.events.now, self._unserve(node, old))
        self._say(node, news=True)

    # --- going

    def _end(self, index: int) -> None:
        node = self.nodes.pop(index, None)
        if node is None:
            return
        node.alive = False
        del self.of_model[node.model][index], self.by_peer[node.peer]
        topic = self.topic(node)
        end = int(self.population.end[index])
        if node.serving:
            self.seen.lost(self.events.now, self._unserve(node, node.span))
        if end == LEAVES:
            arrives = topic.flood(node.place, 300)
            topic.stop(node.place)
            topic.forget(node.place)
            self.spread(topic, arrives, MISSED_DEATH_S, self._drop, node, self.events.now, False)
            return
        topic.stop(node.place)
        self.events.after(UNNOTICED_S, self._look_back, node)
        self.events.after(UNHEARD_S if end == VANISHES else CLOSED_S, topic.forget, node.place)
        self._notice(node, end, self.events.now)

    def _notice(self, node: ScaleNode, end: int, died: float) -> None:
        """Its neighbours find out, tell, and everybody asks before believing it."""
        topic = self.topic(node)
        watchers = [int(topic.machines[place]) for place in topic.neighbours(node.place)]
        found = noticed_s(len(watchers), end, self.chance)
        for after, watcher in sorted(zip(found, watchers, strict=True)):
            self.events.after(after, self._suspect, node, watcher, believed_after_s(end), died)

    def _suspect(self, node: ScaleNode, watcher: int, asked: float, died: float) -> None:
        accuser = self.nodes.get(watcher)
        if accuser is None or not accuser.serving or node.index in self._suspected:
            return  # who hears of it need not say it again
        self._suspected.add(node.index)
        topic = self.topic(node)
        arrives = topic.flood(accuser.place, 80)
        self.spread(topic, arrives + asked, MISSED_DEATH_S + asked, self._drop, node, died, True)

    def _look_back(self, node: ScaleNode) -> None:
        """Whether somebody still takes for alive who died a while ago."""
        others = self.of_model[node.model] if self.partial else self.nodes
        words = (other.kept.words.get(node.peer) for other in others.values())
        if any(word is not None and word.until > self.events.now for word in words):
            self.seen.unnoticed(node.index)

    def _drop(self, machines: list[int], node: ScaleNode, died: float, dead: bool) -> None:
        known = 0
        for machine in machines:
            other = self.nodes.get(machine)
            if other is not None:
                known += other.kept.drop(node.peer, 1 << 62)
        if dead and known:
            self.seen.forgotten(node.index, died, self.events.now)
