"""Whatever happens to a swarm, in whatever order: no wrong token, nothing left behind, and it comes together.

The rules write a plan; at its end one loop lives through it, in simulated time.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from shoal.errors import ShoalError
from shoal.testing.sim import model
from shoal.testing.sim.clock import simulate
from shoal.testing.sim.nodes import SimNode, SimSwarm
from shoal.testing.sim.peers import SPAN, SimPeers

FIRST_NODES = 2 * model.N_BLOCKS // SPAN
"""Two replicas of each block."""
MOST_NODES = 16
TOKENS = 12

numbers = st.integers(0, 1 << 16)


@dataclass
class Life:
    """A swarm, and what has happened to it."""

    swarm: SimSwarm
    nursery: trio.Nursery
    cut: bool = False
    wrong: list[str] = field(default_factory=list)
    asked: int = 0
    failed: int = 0

    def pick(self, number: int) -> SimNode | None:
        """A node, unless there are hardly any left."""
        nodes = self.swarm.nodes
        return nodes[number % len(nodes)] if len(nodes) > 2 else None

    def ghosts(self) -> list[str]:
        """Dead peers that somebody has after one expiry, while everybody can hear everybody."""
        peers = self.swarm.peers
        over = trio.current_time() - peers.expiry_s
        dead = {peer for peer, at in peers.died_at.items() if at < over}
        return [
            f"{peer.peer} has {a.peer}" for peer in peers.alive for a in peer.member.alive() if a.peer in dead
        ]

    def strangers(self) -> list[str]:
        """Living nodes that somebody does not know."""
        alive = self.swarm.peers.alive
        knows = {peer.peer: {a.peer for a in peer.member.alive()} for peer in alive}
        return [f"{a.peer} lacks {b.peer}" for a in alive for b in alive if b.peer not in knows[a.peer]]


Act = Callable[[Life], Awaitable[None]]


class SwarmMachine(RuleBasedStateMachine):
    """Writes a plan; plays it when it is complete."""

    @initialize(seed=numbers)
    def begin(self, seed: int) -> None:
        self.seed = seed
        self.plan: list[Act] = []

    @rule()
    def join(self) -> None:
        async def act(life: Life) -> None:
            if len(life.swarm.nodes) < MOST_NODES:
                await life.swarm.add_node()

        self.plan.append(act)

    @rule(number=numbers)
    def leave(self, number: int) -> None:
        async def act(life: Life) -> None:
            if node := life.pick(number):
                life.nursery.start_soon(life.swarm.drain, node)

        self.plan.append(act)

    @rule(number=numbers, silent=st.booleans())
    def crash(self, number: int, silent: bool) -> None:
        async def act(life: Life) -> None:
            if node := life.pick(number):
                life.swarm.kill(node, silent=silent)

        self.plan.append(act)

    @rule(number=numbers)
    def partition(self, number: int) -> None:
        async def act(life: Life) -> None:
            chance = random.Random(number)
            internet = life.swarm.peers.internet
            internet.side = {peer: chance.randrange(2) for peer in internet.peers}
            life.cut = True

        self.plan.append(act)

    @rule()
    def heal(self) -> None:
        async def act(life: Life) -> None:
            life.swarm.peers.internet.heal()
            life.cut = False

        self.plan.append(act)

    @rule(number=numbers, hours=st.integers(-48, 48))
    def clock_jump(self, number: int, hours: int) -> None:
        async def act(life: Life) -> None:
            if node := life.pick(number):
                node.peer.clock.ahead_s = hours * 3600.0

        self.plan.append(act)

    @rule(prompt=st.lists(st.integers(0, model.VOCAB - 1), min_size=1, max_size=8))
    def open_session(self, prompt: list[int]) -> None:
        async def act(life: Life) -> None:
            life.nursery.start_soon(ask, life, prompt)

        self.plan.append(act)

    @rule(seconds=st.floats(0.1, 20))
    def advance(self, seconds: float) -> None:
        async def act(life: Life) -> None:
            await trio.sleep(seconds)

        self.plan.append(act)

    def teardown(self) -> None:
        if getattr(self, "plan", None):
            simulate(self.seed, play, self.seed, self.plan)


async def ask(life: Life, prompt: list[int]) -> None:
    """One session. It may fail where blocks are gone; it must never be wrong."""
    expected = model.greedy(prompt, TOKENS)
    life.asked += 1
    async with life.swarm.client() as client:
        answer = client.generate("simulated", prompt, max_tokens=TOKENS)
        try:
            async for _ in answer:
                pass
        except ShoalError:
            life.failed += 1
        else:
            assert len(answer.token_ids) == TOKENS
    if answer.token_ids != expected[: len(answer.token_ids)]:
        life.wrong.append(f"{answer.token_ids} where the model gives {expected}")


async def play(seed: int, plan: list[Act]) -> None:
    """Live through the plan, then through quiet times in which everything must come together again."""
    async with SimPeers.running(random.Random(seed)) as peers:
        swarm = SimSwarm(peers)
        for _ in range(FIRST_NODES):
            await swarm.add_node()
        async with trio.open_nursery() as nursery:
            life = Life(swarm, nursery)
            for act in plan:
                await act(life)
                assert not life.wrong
                assert not swarm.violations
            peers.internet.heal()
            await trio.sleep(2 * peers.expiry_s)
        assert not life.wrong
        assert not swarm.violations
        assert not life.ghosts()
        assert not life.strangers()
        await trio.sleep(1)
        assert [left for node in swarm.nodes if (left := node.leftovers())] == []


TestSwarm = SwarmMachine.TestCase
TestSwarm.settings = settings(
    max_examples=4, stateful_step_count=10, deadline=None, derandomize=True, phases=(Phase.generate,)
)
