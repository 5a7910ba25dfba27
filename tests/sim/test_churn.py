"""Sessions while nodes come and go: every token is the model's, and nothing is left behind."""

from __future__ import annotations

import gc
import random
from types import SimpleNamespace

import pytest
import trio

from shoal.errors import ShoalError
from shoal.testing.sim import model
from shoal.testing.sim.churn import ChurnPlan, ChurnResult, _count_leftovers, churn
from shoal.testing.sim.clock import SimClock, simulate
from shoal.testing.sim.engine import SimEngine
from shoal.testing.sim.nodes import SimSwarm
from shoal.testing.sim.peers import SimPeers
from shoal.types import SessionId, Span

PROMPT = [3, 1, 4, 1, 5]


async def test_a_simulated_route_gives_the_tokens_of_the_model(clock: SimClock):
    async with SimPeers.running(random.Random(4)) as peers:
        swarm = SimSwarm(peers)
        for _ in range(3):
            await swarm.add_node()
        async with swarm.client() as client:
            answer = client.generate("simulated", PROMPT, max_tokens=10)
            async for _ in answer:
                pass
            assert answer.token_ids == model.greedy(PROMPT, 10)
            assert len(answer.route) == 3
        await trio.sleep(1)
        assert [node.leftovers() for node in swarm.nodes] == [""] * 3


def test_half_a_minute_of_churn_leaves_no_trace():
    outcome = churn(ChurnPlan(nodes=10, minutes=0.5, sessions=8, every_s=2.0, seed=11, vanish=0.0))
    assert outcome.good, outcome.details
    assert outcome.kills > 3
    assert outcome.answers > 6


def test_what_was_taken_from_the_search_for_garbage_before_stays_so():
    gc.freeze()
    before = gc.get_freeze_count()
    simulate(1, trio.sleep, 1.0)
    assert gc.get_freeze_count() > 0.9 * before > 0


async def test_tasks_that_are_left_are_a_fault():
    nobody = SimpleNamespace(violations=[], nodes=[])
    there = trio.lowlevel.current_statistics().tasks_living
    for before, stray in ((there, 0), (2 * there, there)):
        outcome = ChurnResult(tasks_before=before)
        _count_leftovers(nobody, outcome)
        assert (outcome.stray, outcome.good) == (stray, not stray)


@pytest.mark.parametrize("change", ["block left out", "order", "token lost", "token twice", "other session"])
def test_the_model_shows_every_fault(change):
    tokens = [5, 6, 7, 8]
    states = [0] * model.N_BLOCKS
    others = [0] * model.N_BLOCKS
    said: list[int] = []
    if change == "token lost":
        del tokens[1]
    if change == "token twice":
        tokens.insert(1, tokens[1])
    for position, token in enumerate(tokens):
        hidden = model.embed(token, position)
        blocks = list(range(model.N_BLOCKS))
        if change == "block left out":
            blocks.remove(9)
        if change == "order":
            blocks[3], blocks[4] = blocks[4], blocks[3]
        for block in blocks:
            mine = others if change == "other session" and position == 2 and block > 20 else states
            hidden = mine[block] = model.run_block(block, mine[block], hidden, position)
        said.append(model.choose(hidden))
    assert said[-1:] != model.greedy([5, 6, 7, 8], 1)


async def test_the_engine_tells_of_a_step_that_cannot_be_and_keeps_count_of_pages(clock: SimClock):
    violations: list[str] = []
    told: list[object] = []
    async with SimPeers.running(random.Random(4)) as peers:
        engine = SimEngine(Span(0, 8), peers.internet.agenda, violations)
        session = SessionId(b"s" * 16)
        await engine.open(session)
        engine.grow(session, 100)
        row = model.pack([7])
        engine.submit(session, 0, row * 20, "float32", 20, 1, "float32", told.append)
        await trio.sleep(1)
        assert (engine.pool.taken, violations) == (2, [])
        engine.submit(session, 25, row, "float32", 1, 1, "float32", told.append)
        await trio.sleep(1)
        assert len(violations) == 1
        assert isinstance(told[-1], ShoalError)
        engine.close(session)
        assert (engine.pool.taken, engine.tokens_free) == (0, engine.tokens)
