"""Stages work at once: a hop sends one piece while it computes the next, and several sessions fill a ring.

Each test holds one thing back until another has begun. Where the two could only come one after the other,
that never happens, and the test ends by its deadline.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import AsyncExitStack

import pytest
import trio

from shoal.client.sampling import Sampler, Sampling
from shoal.executor.modules import ModuleRunner
from shoal.net.channel import Channel
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.memory import MemoryPipe
from shoal.testing.swarm import memory_swarm
from shoal.types import Span

FIRST, SECOND = Span(0, 3), Span(3, 6)
PROMPT = [token % 290 for token in range(1, 193)]
PIECE = 64
WITHIN_S = 20.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


class Forwards:
    """The forwards of each span: told when one begins, and held until the test lets it go on."""

    def __init__(self):
        self.begun = defaultdict(int)
        self._news = threading.Condition()
        self._holds = {}

    def hold(self, span, number, until, count):
        """Forward ``number`` of ``span`` goes on when ``count`` of the span ``until`` have begun."""
        self._holds[span, number] = (until, count)

    def count_from_here(self):
        """A node that loads a span measures it: those forwards are none of a session's."""
        self.begun.clear()

    def begin(self, span):
        with self._news:
            self.begun[span] += 1
            self._news.notify_all()
        if (held := self._holds.get((span, self.begun[span]))) is not None:
            assert self.wait(*held), "it never began"

    def wait(self, span, count):
        with self._news:
            return self._news.wait_for(lambda: self.begun[span] >= count, WITHIN_S)


@pytest.fixture
def forwards(monkeypatch):
    seen = Forwards()
    forward = ModuleRunner.forward

    def noted(runner, batch):
        seen.begin(runner.span)
        return forward(runner, batch)

    monkeypatch.setattr(ModuleRunner, "forward", noted)
    return seen


async def test_a_hop_computes_a_piece_while_the_next_hop_computes_the_one_before(
    tmp_path, checkpoint, forwards
):
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [FIRST, SECOND], prefill_chunk=PIECE) as swarm,
        swarm.client.session(str(checkpoint), tokens=256) as session,
    ):
        forwards.count_from_here()
        forwards.hold(FIRST, 2, until=SECOND, count=1)
        forwards.hold(SECOND, 1, until=FIRST, count=2)
        await session.advance(PROMPT, Sampler(Sampling()))
    assert forwards.begun == {FIRST: 3, SECOND: 3}


async def test_a_hop_computes_a_piece_while_it_sends_the_one_before(
    tmp_path, checkpoint, forwards, monkeypatch
):
    """Nothing that is as long as a piece leaves the first hop before it has begun its second."""
    send_all = MemoryPipe.send_all
    waited = []

    async def held(pipe, data):
        if len(data) > PIECE * 64 * 4 and pipe in swarm.networks[0].pipes and not waited:
            waited.append(await trio.to_thread.run_sync(forwards.wait, FIRST, 2))
        await send_all(pipe, data)

    monkeypatch.setattr(MemoryPipe, "send_all", held)
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [FIRST, SECOND], prefill_chunk=PIECE) as swarm,
        swarm.client.session(str(checkpoint), tokens=256) as session,
    ):
        forwards.count_from_here()
        await session.advance(PROMPT, Sampler(Sampling()))
    assert waited == [True]


async def test_two_sessions_keep_two_hops_busy(tmp_path, checkpoint, forwards):
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [FIRST, SECOND]) as swarm,
        swarm.client.session(str(checkpoint), tokens=32) as one,
        swarm.client.session(str(checkpoint), tokens=32) as other,
        trio.open_nursery() as nursery,
    ):
        forwards.count_from_here()
        forwards.hold(SECOND, 1, until=FIRST, count=2)
        nursery.start_soon(one.advance, [1, 2, 3], Sampler(Sampling()))
        assert await trio.to_thread.run_sync(forwards.wait, SECOND, 1)
        nursery.start_soon(other.advance, [4, 5, 6], Sampler(Sampling()))


async def test_the_results_of_one_forward_leave_together(tmp_path, checkpoint, monkeypatch):
    """Three sessions' steps in at most two forwards: the next hop is written to as often."""
    gate, batches, flushed = threading.Event(), [], []
    forward, flush = ModuleRunner.forward, Channel.flush

    def gated(runner, batch):
        if runner.span == FIRST:
            assert gate.wait(WITHIN_S)
            batches.append(len(batch))
        return forward(runner, batch)

    def noted(channel):
        if channel.peer == swarm.networks[1].peer:
            flushed.append(len(channel._outbox._gathered))
        flush(channel)

    async with (
        memory_swarm(tmp_path / "home", checkpoint, [FIRST, SECOND]) as swarm,
        AsyncExitStack() as stack,
    ):
        opening = [swarm.client.session(str(checkpoint), tokens=32) for _ in range(3)]
        sessions = [await stack.enter_async_context(session) for session in opening]
        monkeypatch.setattr(ModuleRunner, "forward", gated)
        monkeypatch.setattr(Channel, "flush", noted)
        async with trio.open_nursery() as nursery:
            for session in sessions:
                nursery.start_soon(session.advance, [1, 2, 3], Sampler(Sampling()))
            with trio.fail_after(WITHIN_S):
                while swarm.nodes[0].server.waiting < len(sessions):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            gate.set()
    assert sum(batches) == len(sessions)
    assert flushed == batches
    assert max(flushed) > 1
