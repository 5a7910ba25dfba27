"""Sessions at a node whose owner wants the machine: they go on elsewhere, or slowly, with the same tokens."""

from __future__ import annotations

import re

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shoal.client.sampling import Sampler, Sampling
from shoal.errors import Busy
from shoal.node.figures import pages
from shoal.node.owner import watch, yielding
from shoal.node.owner.watch import LOWERED_SHARE
from shoal.testing.machine import PretendMachine
from shoal.types import Span

from .conftest import PROMPT, THIRDS, memory_swarm

GREEDY = Sampler(Sampling())
SOON_S = 15.0
"""Within this a node notices, on however busy a machine."""
NOTICED_S = 1.5
"""In this it would have noticed, by the times that :func:`quick` sets."""
COUNT = 24


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A pretended second costs real time too."""
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.25)
    monkeypatch.setattr(watch, "SETTLE_S", 1.0)
    monkeypatch.setattr(yielding, "BUSY_S", 0.5)
    monkeypatch.setattr(yielding, "QUIET_S", 2.0)
    monkeypatch.setattr(yielding, "SMOOTH_S", 0.1)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def pretended():
    """A machine that nobody else uses yet, by the clock of this test."""
    loop = trio.lowlevel.current_trio_token()
    return PretendMachine(lambda: trio.from_thread.run_sync(trio.current_time, trio_token=loop))


class Chosen:
    """Greedy tokens of one session, as many as are asked for at a time."""

    def __init__(self, session):
        self.session = session
        self.tokens = []

    async def until(self, count):
        while len(self.tokens) < count:
            told = self.tokens[-1:] or PROMPT
            self.tokens.append((await self.session.advance(told, GREEDY, more=True)).token)


async def becomes(condition, within_s):
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.2)


def announced(swarm, node):
    """What the client has heard last of a node."""
    peer = node.member.network.peer
    return next(a.served for a in swarm.client.member.alive() if a.peer == peer)


def shown(node):
    return pages(node)["/metrics"].render().decode()


def figure(node, name):
    """What a node's metrics say."""
    return float(re.search(rf"^{name} (\S+)$", shown(node), re.MULTILINE)[1])


async def test_sessions_go_on_elsewhere_with_the_same_tokens_and_it_comes_back(home, checkpoint, whole):
    async with memory_swarm(home, checkpoint, [THIRDS[0], THIRDS[2]]) as swarm:
        machine = pretended()
        owned = await swarm.add_node(THIRDS[1], machine=machine, yield_to_owner="pause")
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            chosen = Chosen(session)
            await chosen.until(8)
            spare = await swarm.add_node(THIRDS[1])

            machine.cpu_by_others = 0.9
            await becomes(lambda: owned.server.sessions == 0, SOON_S)
            said = announced(swarm, owned)
            assert (said.share, said.tokens_free) == (0.0, 0)
            assert figure(owned, "shoal_share") == 0.0
            await chosen.until(16)
            assert [(r.way, r.lost) for r in session.reroutes] == [("resend", (owned.member.network.peer,))]
            assert spare.server.sessions == 1
            async with swarm.client.session(str(checkpoint), tokens=64) as another:
                await Chosen(another).until(4)
                assert another.ring.route[1].address.peer == spare.member.network.peer

            machine.cpu_by_others = 0.0
            await becomes(lambda: announced(swarm, owned).share == 1.0, SOON_S)
            assert announced(swarm, owned).tokens_free == owned.engine.tokens
            assert figure(owned, "shoal_share") == 1.0
            await chosen.until(COUNT)
            assert chosen.tokens == whole.greedy(PROMPT, COUNT)


async def test_all_its_hops_may_pause_and_one_peer_takes_their_blocks_together(home, checkpoint, whole):
    async with memory_swarm(home, checkpoint, [Span(0, 6)]) as swarm:
        machine = pretended()
        spans = (Span(0, 3), Span(3, 6))
        owned = [await swarm.add_node(span, machine=machine, yield_to_owner="pause") for span in spans]
        peers = [node.member.network.peer for node in owned]
        client = await swarm.add_client(pin=tuple(peers))
        async with client.session(str(checkpoint), tokens=64) as session:
            chosen = Chosen(session)
            await chosen.until(8)
            assert [hop.address.peer for hop in session.ring.route] == peers
            machine.cpu_by_others = 0.9
            with trio.fail_after(3 * SOON_S):
                while any(node.server.sessions for node in owned):
                    await trio.sleep(0.2)
                    await chosen.until(len(chosen.tokens) + 1)
            await chosen.until(COUNT + 12)
            assert [hop.address.peer for hop in session.ring.route] == [swarm.networks[0].peer]
            assert chosen.tokens == whole.greedy(PROMPT, len(chosen.tokens))


async def test_a_step_that_is_under_way_at_that_moment_is_not_lost(home, checkpoint, whole):
    async with (
        memory_swarm(home, checkpoint, [*THIRDS, THIRDS[1], THIRDS[1]]) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        chosen = Chosen(session)
        for count in (3, 9, 15):
            await chosen.until(count)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chosen.until, count + 1)
                await wait_all_tasks_blocked()
                peer = session.ring.route[1].address.peer
                node = next(n for n in swarm.nodes if n.member.network.peer == peer)
                for held in node.server.held():
                    node.server.hand_over(held.session, "the test says so")
        await chosen.until(COUNT)
        assert chosen.tokens == whole.greedy(PROMPT, COUNT)
        assert len(session.reroutes) == 3


async def test_where_nobody_else_has_the_blocks_sessions_stay_and_newcomers_are_told(home, checkpoint, whole):
    async with memory_swarm(home, checkpoint, [THIRDS[0], THIRDS[2]]) as swarm:
        machine = pretended()
        owned = await swarm.add_node(THIRDS[1], machine=machine, yield_to_owner="pause")
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            chosen = Chosen(session)
            await chosen.until(8)
            machine.on_battery = True
            await becomes(lambda: owned.server.paused, SOON_S)
            await trio.sleep(NOTICED_S)
            assert owned.server.sessions == 1
            assert owned.engine.share == LOWERED_SHARE
            with pytest.raises(Busy):
                async with swarm.client.session(str(checkpoint), tokens=64):
                    pass
            await chosen.until(COUNT)
            assert chosen.tokens == whole.greedy(PROMPT, COUNT)
            assert session.reroutes == []


async def test_two_nodes_that_pause_together_do_not_hand_sessions_to_each_other(home, checkpoint, whole):
    async with memory_swarm(home, checkpoint, [THIRDS[0], THIRDS[2]]) as swarm:
        machine = pretended()
        both = [await swarm.add_node(THIRDS[1], machine=machine, yield_to_owner="pause") for _ in range(2)]
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            chosen = Chosen(session)
            await chosen.until(8)
            machine.cpu_by_others = 0.9
            await becomes(lambda: all(node.server.paused for node in both), SOON_S)
            await trio.sleep(NOTICED_S)
            await chosen.until(COUNT)
            assert chosen.tokens == whole.greedy(PROMPT, COUNT)
            assert session.reroutes == []


async def test_with_share_it_computes_less_and_keeps_its_sessions(home, checkpoint, whole):
    async with memory_swarm(home, checkpoint, [THIRDS[0], THIRDS[2]]) as swarm:
        machine = pretended()
        owned = await swarm.add_node(THIRDS[1], machine=machine, yield_to_owner="share")
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            chosen = Chosen(session)
            await chosen.until(8)
            await swarm.add_node(THIRDS[1])
            machine.gpu_by_others = 0.9
            await becomes(lambda: announced(swarm, owned).share == LOWERED_SHARE, SOON_S)
            await trio.sleep(NOTICED_S)
            said, load = announced(swarm, owned), owned.server.load
            assert said.step_ms == load.step_ms
            assert said.wait_ms >= load.step_ms * (1 / LOWERED_SHARE - 1)
            assert said.speed == pytest.approx(owned.loaded.speed.blocks_s * LOWERED_SHARE)
            assert said.tokens_free > 0
            assert owned.server.sessions == 1
            await chosen.until(COUNT)
            assert chosen.tokens == whole.greedy(PROMPT, COUNT)


@pytest.mark.parametrize("mode", ["off", "pause"])
async def test_a_node_gives_way_only_if_it_is_to_and_only_to_others(home, checkpoint, mode):
    async with memory_swarm(home, checkpoint, []) as swarm:
        machine = pretended()
        owned = await swarm.add_node(THIRDS[1], machine=machine, yield_to_owner=mode)
        machine.cpu_by_node = 1.0
        machine.cpu_by_others = 1.0 if mode == "off" else 0.0
        await trio.sleep(NOTICED_S)
        assert (owned.served().share, owned.served().tokens_free) == (1.0, owned.engine.tokens)


async def test_joules_of_a_token_are_announced_where_the_machine_tells_them(home, checkpoint):
    async with memory_swarm(home, checkpoint, [THIRDS[0], THIRDS[2]], announce_s=1.0) as swarm:
        machine = pretended()
        machine.watts, machine.cpu_by_node = 65.0, 0.5
        owned = await swarm.add_node(THIRDS[1], machine=machine, announce_s=1.0)
        assert owned.served().token_joules == 0
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            await Chosen(session).until(COUNT)
        await becomes(lambda: announced(swarm, owned).token_joules > 0, 30)
        assert all(announced(swarm, node).token_joules == 0 for node in swarm.nodes[:2])
        assert figure(owned, "shoal_energy_joules_total") > figure(owned, "shoal_token_joules") > 0
        assert "joules" not in shown(swarm.nodes[0])


class SilentMachine:
    """One that tells nothing."""

    def read(self):
        return None


@pytest.mark.parametrize("mode", ["off", "share"])
async def test_a_machine_that_tells_nothing_is_served_from_all_the_same(home, checkpoint, caplog, mode):
    async with memory_swarm(home, checkpoint, []) as swarm:
        node = await swarm.add_node(THIRDS[1], machine=SilentMachine(), yield_to_owner=mode)
        await trio.sleep(NOTICED_S)
        assert node.served().share == 1.0
    assert ("--yield changes nothing" in caplog.text) is (mode == "share")
