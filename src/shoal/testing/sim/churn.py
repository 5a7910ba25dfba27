"""Nodes come and go while sessions run: every token must be right, and nothing may be left behind."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

from shoal.client.swarm import Swarm
from shoal.errors import ShoalError
from shoal.testing.sim import model
from shoal.testing.sim.clock import simulate
from shoal.testing.sim.nodes import SimSwarm
from shoal.testing.sim.peers import SimPeers
from shoal.types import PeerId

CLIENTS = 10
"""Client processes, which share the sessions."""
GHOST_EVERY_S = 5.0
FORGET_EVERY_S = 20.0
SETTLE_S = 100.0
"""After the last session, before what is left behind is counted."""
TOKENS = (16, 48)
PROMPT = (4, 40)
LISTED = 20
STRAY = 0.1
"""The share by which the tasks of two swarms of one size may differ: those of connections come and go."""


@dataclass(frozen=True, slots=True)
class ChurnPlan:
    """What happens. Times are simulated."""

    nodes: int = 200
    minutes: float = 30.0
    sessions: int = 50
    """So many at once, one after another."""
    every_s: float = 4.0
    """Between a join or the end of a node and the next, at the mean."""
    seed: int = 1
    vanish: float = 0.5
    """The share of the killed whose machine vanishes too, so that no closed socket tells of it."""


@dataclass(slots=True)
class ChurnResult:
    """What came of it. The first six are what must be 0."""

    wrong: int = 0
    """Answers with a token that the model does not give."""
    errors: int = 0
    ghosts: int = 0
    """A dead peer that somebody still had after one expiry, counted every few seconds."""
    leaked: int = 0
    """Nodes on which a session, a hop or a page was left."""
    violations: int = 0
    """Steps that no engine may be asked for."""
    stray: int = 0
    """Tasks more, or fewer, than before, where that is more than connections explain."""
    answers: int = 0
    tokens: int = 0
    reroutes: Counter[str] = field(default_factory=Counter[str])
    gap_s_most: float = 0.0
    joins: int = 0
    kills: int = 0
    leaves: int = 0
    tasks_before: int = 0
    """Of the same number of nodes without any session."""
    tasks_after: int = 0
    simulated_s: float = 0.0
    real_s: float = 0.0
    details: list[str] = field(default_factory=list[str])

    @property
    def good(self) -> bool:
        """Whether everything held that must."""
        return not any((self.wrong, self.errors, self.ghosts, self.leaked, self.violations, self.stray))

    def note(self, detail: str) -> None:
        """Keep the first few findings."""
        if len(self.details) < LISTED:
            self.details.append(f"at {trio.current_time():.1f} s: {detail}")

    def shown(self) -> dict[str, Any]:
        """For people and JSON."""
        fields = asdict(self) | {"reroutes": dict(self.reroutes)}
        return {k: round(v, 2) if isinstance(v, float) else v for k, v in fields.items()}


def churn(plan: ChurnPlan, report: Callable[[str], None] = lambda _: None) -> ChurnResult:
    """Simulate the plan; ``report`` is told how far it is, each simulated minute."""
    began = time.monotonic()
    outcome = simulate(plan.seed, _churn, plan, report)
    outcome.real_s = time.monotonic() - began
    return outcome


async def _churn(plan: ChurnPlan, report: Callable[[str], None]) -> ChurnResult:
    outcome = ChurnResult()
    async with SimPeers.running(random.Random(plan.seed)) as peers:
        swarm = SimSwarm(peers)
        for _ in range(plan.nodes):
            await swarm.add_node()
        outcome.tasks_before = trio.lowlevel.current_statistics().tasks_living
        began = trio.current_time()
        until = began + plan.minutes * 60
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_come_and_go, plan, swarm, outcome, until)
            nursery.start_soon(_look_for_ghosts, peers, outcome, until)
            nursery.start_soon(_forget_idle, peers, until)
            nursery.start_soon(_report, outcome, report, until)
            for number in range(CLIENTS):
                count = len(range(number, plan.sessions, CLIENTS))
                nursery.start_soon(_be_client, swarm, count, outcome, until)
        outcome.simulated_s = trio.current_time() - began
        while len(swarm.nodes) > plan.nodes:
            await swarm.drain(swarm.nodes[-1])
        while len(swarm.nodes) < plan.nodes:
            await swarm.add_node()
        await _forget_idle(peers, trio.current_time() + SETTLE_S)
        _count_leftovers(swarm, outcome)
    return outcome


async def _come_and_go(plan: ChurnPlan, swarm: SimSwarm, outcome: ChurnResult, until: float) -> None:
    chance = random.Random(plan.seed)
    async with trio.open_nursery() as leaving:
        while trio.current_time() < until:
            await trio.sleep(chance.uniform(0.5, 1.5) * plan.every_s)
            few = len(swarm.nodes) < 0.9 * plan.nodes
            if few or (len(swarm.nodes) < 1.1 * plan.nodes and chance.random() < 0.5):
                outcome.joins += 1
                leaving.start_soon(swarm.add_node)
            elif chance.random() < 0.2:
                outcome.leaves += 1
                leaving.start_soon(swarm.drain, chance.choice(swarm.nodes))
            else:
                outcome.kills += 1
                swarm.kill(chance.choice(swarm.nodes), silent=chance.random() < plan.vanish)


async def _be_client(swarm: SimSwarm, sessions: int, outcome: ChurnResult, until: float) -> None:
    async with swarm.client() as client, trio.open_nursery() as nursery:
        for _ in range(sessions):
            nursery.start_soon(_ask, swarm, client, outcome, until)


async def _ask(swarm: SimSwarm, client: Swarm, outcome: ChurnResult, until: float) -> None:
    chance = swarm.peers.chance
    while trio.current_time() < until:
        await trio.sleep(chance.uniform(0, 5))
        prompt = [chance.randrange(model.VOCAB) for _ in range(chance.randint(*PROMPT))]
        expected = model.greedy(prompt, chance.randint(*TOKENS))
        answer = client.generate("simulated", prompt, max_tokens=len(expected))
        try:
            async for _ in answer:
                pass
        except ShoalError as error:
            outcome.errors += 1
            outcome.note(f"{type(error).__name__} after {len(answer.token_ids)} tokens: {error.message}")
        outcome.answers += 1
        outcome.tokens += len(answer.token_ids)
        outcome.reroutes.update(reroute.way for reroute in answer.reroutes)
        outcome.gap_s_most = max([outcome.gap_s_most, *(reroute.gap_s for reroute in answer.reroutes)])
        if answer.token_ids != expected[: len(answer.token_ids)]:
            outcome.wrong += 1
            outcome.note(f"{answer.token_ids} where the model gives {expected}; {answer.reroutes}")


async def _look_for_ghosts(peers: SimPeers, outcome: ChurnResult, until: float) -> None:
    while trio.current_time() < until:
        await trio.sleep(GHOST_EVERY_S)
        over = trio.current_time() - peers.expiry_s
        dead = {peer for peer, at in peers.died_at.items() if at < over}
        for peer in peers.alive:
            for ghost in dead.intersection(PeerId(a.peer) for a in peer.member.alive()):
                outcome.ghosts += 1
                late = over - peers.died_at[ghost]
                outcome.note(
                    f"{peer.peer} still has {ghost}, {late:.1f} s more than one expiry after its end"
                )


async def _report(outcome: ChurnResult, report: Callable[[str], None], until: float) -> None:
    minutes = 0
    while trio.current_time() < until:
        await trio.sleep(60)
        minutes += 1
        bad = "" if outcome.good else f", {outcome.details}"
        report(f"{minutes} min: {outcome.answers} answers, {outcome.reroutes.total()} re-routes{bad}")


async def _forget_idle(peers: SimPeers, until: float) -> None:
    while trio.current_time() < until:
        await trio.sleep(FORGET_EVERY_S)
        peers.internet.forget_idle()


def _count_leftovers(swarm: SimSwarm, outcome: ChurnResult) -> None:
    outcome.tasks_after = trio.lowlevel.current_statistics().tasks_living
    more = abs(outcome.tasks_after - outcome.tasks_before)
    if more > STRAY * outcome.tasks_before:
        outcome.stray = more
        outcome.note(f"{outcome.tasks_after} tasks, and {outcome.tasks_before} before")
    outcome.violations = len(swarm.violations)
    for violation in swarm.violations:
        outcome.note(violation)
    for node in swarm.nodes:
        left = node.leftovers()
        if left:
            outcome.leaked += 1
            outcome.note(f"{node.peer.peer} was left with {left}")
