"""A session survives its hops: the tokens are those it would have had, and what cannot be mended is said."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from threading import Timer

import numpy as np
import pytest
import trio

from shoal.client.ring.ring import Ring
from shoal.client.ring.suspects import FIRST_S
from shoal.client.sampling import Sampler, Sampling
from shoal.errors import ChannelClosed, NoCoverage, StepFailed
from shoal.net.channel import Channel
from shoal.node import resend_buffer
from shoal.node.admission import NextHopUnreachable
from shoal.node.hop import Hop
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.memory import World

from .conftest import PROMPT, THIRDS, Whole, memory_swarm

GREEDY = Sampler(Sampling())


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def index_of(swarm, peer):
    return next(i for i, network in enumerate(swarm.networks) if network.peer == peer)


@asynccontextmanager
async def at_work(home, checkpoint, spans, **options):
    """A swarm and a session in it; when that is over, every node that is left has its KV back."""
    async with memory_swarm(home, checkpoint, spans, **options) as swarm:
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            yield swarm, session
        await idle(swarm)


async def idle(swarm):
    with trio.fail_after(30):
        for network, node in zip(swarm.networks, swarm.nodes, strict=True):
            if network.peer in swarm.world.peers:
                await node.server.wait_idle()
                assert node.engine.tokens_free == node.engine.tokens
                assert node.server.sessions == 0


async def decode(session, prompt, count, before_token=None):
    """Greedy tokens; ``before_token`` is called with the number of each token before it is asked for."""
    chosen = [(await session.advance(prompt, GREEDY, more=True)).token]
    while len(chosen) < count:
        if before_token is not None:
            before_token(len(chosen))
        chosen.append((await session.advance(chosen[-1:], GREEDY, more=True)).token)
    return chosen


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_any_hop_may_die_while_it_decodes(home, checkpoint, whole, place):
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS]) as swarm:
        dead = []
        async with swarm.client.session(str(checkpoint), tokens=64) as session:

            def strike(token):
                if token == 7:
                    dead.append(index_of(swarm, session.ring.route[place].address.peer))
                    swarm.kill(dead[0])

            chosen = await decode(session, PROMPT, 20, strike)
            assert chosen == whole.greedy(PROMPT, 20)
            assert [(r.way, len(r.lost)) for r in session.reroutes] == [("resend", 1)]
            assert swarm.networks[dead[0]].peer == session.reroutes[0].lost[0]
        await idle(swarm)


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_any_hop_may_die_before_the_first_token(home, checkpoint, whole, place):
    async with at_work(home, checkpoint, [*THIRDS, *THIRDS]) as (swarm, session):
        dead = index_of(swarm, session.ring.route[place].address.peer)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                swarm.kill(dead)

            chosen = await decode(session, PROMPT, 8)
        assert chosen == whole.greedy(PROMPT, 8)


@pytest.mark.parametrize("places", [(0, 1), (1, 2), (0, 2)])
async def test_two_hops_may_die_at_once(home, checkpoint, whole, places):
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS]) as swarm:
        dead = []
        async with swarm.client.session(str(checkpoint), tokens=64) as session:

            def strike(token):
                if token == 5:
                    dead.extend(index_of(swarm, session.ring.route[p].address.peer) for p in places)
                    for victim in dead:
                        swarm.kill(victim)

            assert await decode(session, PROMPT, 16, strike) == whole.greedy(PROMPT, 16)
        await idle(swarm)


async def test_the_one_that_took_its_place_may_die_too(home, checkpoint, whole):
    async with memory_swarm(home, checkpoint, [*THIRDS, THIRDS[1], THIRDS[1]]) as swarm:
        dead = []
        async with swarm.client.session(str(checkpoint), tokens=64) as session:

            def strike(token):
                if token in (4, 5):
                    dead.append(index_of(swarm, session.ring.route[1].address.peer))
                    swarm.kill(dead[-1])

            assert await decode(session, PROMPT, 16, strike) == whole.greedy(PROMPT, 16)
            assert [r.way for r in session.reroutes] == ["resend", "resend"]
        await idle(swarm)


async def test_a_session_is_replayed_where_its_neighbour_has_not_kept_enough(
    home, checkpoint, whole, monkeypatch
):
    monkeypatch.setattr(resend_buffer.ResendBudget.__init__, "__defaults__", (0,))
    async with at_work(home, checkpoint, [*THIRDS, THIRDS[1]]) as (swarm, session):

        def strike(token):
            if token == 7:
                swarm.kill(1 if session.ring.route[1].address.peer == swarm.networks[1].peer else 3)

        assert await decode(session, PROMPT, 20, strike) == whole.greedy(PROMPT, 20)
        assert [r.way for r in session.reroutes] == ["replay"]


@pytest.mark.parametrize("family", ["gemma3", "mamba"])
async def test_a_cache_that_cannot_go_back_is_built_again(home, tmp_path, family):
    checkpoint = write_checkpoint(tmp_path / family, family)
    async with at_work(home, checkpoint, [*THIRDS, *THIRDS], format="fp32") as (swarm, session):

        def strike(token):
            if token == 9:
                swarm.kill(index_of(swarm, session.ring.route[1].address.peer))

        assert await decode(session, PROMPT, 16, strike) == Whole(checkpoint).greedy(PROMPT, 16)
        assert session.reroutes


async def test_a_replay_that_is_lost_on_its_way_begins_again(home, tmp_path, monkeypatch):
    """All of it had been sent, and nothing of it was back: what comes of it later answers nothing new."""
    checkpoint = write_checkpoint(tmp_path / "gemma3", "gemma3")
    receive, struck = Ring.receive, []
    async with at_work(home, checkpoint, [*THIRDS, *THIRDS, *THIRDS], format="fp32") as (swarm, session):

        async def receive_late(ring):
            oldest = ring.rules.oldest
            if oldest is not None and oldest.wanted == 0 and oldest.number > 1 and not struck:
                struck.append(ring.route[1].address.peer)
                swarm.kill(index_of(swarm, struck[0]))
                ring.losses.lose(1, "it is gone")
            return await receive(ring)

        monkeypatch.setattr(Ring, "receive", receive_late)

        def strike(token):
            if token == 9:
                swarm.kill(index_of(swarm, session.ring.route[1].address.peer))

        assert await decode(session, PROMPT, 16, strike) == Whole(checkpoint).greedy(PROMPT, 16)
        assert struck


async def test_blocks_that_another_split_covers_are_found_too(home, checkpoint, whole):
    spans = [*THIRDS, THIRDS[0].__class__(0, 4), THIRDS[0].__class__(4, 6)]
    async with at_work(home, checkpoint, spans) as (swarm, session):

        def strike(token):
            if token == 6:
                for hop in session.ring.route:
                    if hop.address.peer in {n.peer for n in swarm.networks[:3]}:
                        swarm.kill(index_of(swarm, hop.address.peer))
                        break

        assert await decode(session, PROMPT, 14, strike) == whole.greedy(PROMPT, 14)


async def test_when_nobody_is_left_the_error_names_the_blocks_and_comes_in_time(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS, resume_s=1.0) as swarm:
        began = trio.current_time()
        with pytest.raises(NoCoverage, match="blocks 2:3") as caught:
            async with swarm.client.session(str(checkpoint), tokens=100) as session:
                await session.step(PROMPT)
                swarm.kill(1)
                await session.step([1])
        assert [str(span) for span in caught.value.missing] == ["2:3"]
        assert trio.current_time() - began < 7  # and not the 8.5 s that a session has by default
        await idle(swarm)


async def test_a_session_goes_on_when_somebody_comes_back_within_its_wait(home, checkpoint, whole):
    async with (
        at_work(home, checkpoint, THIRDS, resume_s=20.0) as (swarm, session),
        trio.open_nursery() as nursery,
    ):

        async def come_back():
            await trio.sleep(0.7)
            await swarm.add_node(THIRDS[1])

        def strike(token):
            if token == 5:
                swarm.kill(1)
                nursery.start_soon(come_back)

        assert await decode(session, PROMPT, 12, strike) == whole.greedy(PROMPT, 12)


async def test_a_session_that_gave_up_goes_on_when_it_is_asked_again(home, checkpoint, whole):
    async with at_work(home, checkpoint, THIRDS, resume_s=1.0) as (swarm, session):
        assert np.array_equal(await session.step(PROMPT), whole.step(PROMPT))
        swarm.kill(1)
        with pytest.raises(NoCoverage):
            await session.step([7])
        await swarm.add_node(THIRDS[1])
        assert np.array_equal(await session.step([7]), whole.step([7]))


@pytest.mark.usefixtures("step_by_step")
async def test_a_hop_that_is_silent_is_replaced(home, checkpoint, whole, monkeypatch):
    async with at_work(home, checkpoint, [*THIRDS, *THIRDS]) as (swarm, session):
        victims = set()
        monkeypatch.setattr(
            Channel, "silent_s", property(lambda channel: 60.0 if channel.peer in victims else 0.0)
        )
        taken = Hop.take

        def swallow(hop, step, payload):
            if hop.engine not in [swarm.nodes[index_of(swarm, v)].engine for v in victims]:
                taken(hop, step, payload)

        monkeypatch.setattr(Hop, "take", swallow)

        def strike(token):
            if token == 5:
                victims.add(session.ring.route[1].address.peer)

        began = trio.current_time()
        assert await decode(session, PROMPT, 12, strike) == whole.greedy(PROMPT, 12)
        assert [set(r.lost) for r in session.reroutes] == [victims]
        assert trio.current_time() - began < 30  # and not the 60 s that a step may take


@pytest.mark.usefixtures("step_by_step")
async def test_a_late_step_is_traced_to_the_hop_that_sits_on_it(home, checkpoint, whole, monkeypatch):
    async with at_work(home, checkpoint, [*THIRDS, *THIRDS], step_timeout_s=1.0) as (swarm, session):
        stuck = []
        submit = Hop._submit

        def swallow(hop, step, payload):
            if hop.engine not in stuck:
                submit(hop, step, payload)

        monkeypatch.setattr(Hop, "_submit", swallow)

        def strike(token):
            if token == 5:
                stuck.append(swarm.nodes[index_of(swarm, session.ring.route[1].address.peer)].engine)

        assert await decode(session, PROMPT, 12, strike) == whole.greedy(PROMPT, 12)
        lost = [swarm.nodes[index_of(swarm, peer)].engine for r in session.reroutes for peer in r.lost]
        assert lost == stuck


def break_forward(monkeypatch, node):
    def broken(batch):
        return [StepFailed("the forward failed: out of luck") for _ in batch]

    monkeypatch.setattr(node.engine.runner, "forward", broken)


@pytest.mark.usefixtures("step_by_step")
async def test_a_hop_that_cannot_run_a_step_is_replaced(home, checkpoint, whole, monkeypatch):
    async with at_work(home, checkpoint, [*THIRDS, *THIRDS]) as (swarm, session):

        def strike(token):
            if token == 5:
                peer = session.ring.route[1].address.peer
                break_forward(monkeypatch, swarm.nodes[index_of(swarm, peer)])

        assert await decode(session, PROMPT, 12, strike) == whole.greedy(PROMPT, 12)
        assert len(session.reroutes) == 1


@pytest.mark.usefixtures("step_by_step")
async def test_where_nobody_else_could_run_it_the_error_comes_at_once_and_the_session_stays(
    home, checkpoint, whole, monkeypatch
):
    async with at_work(home, checkpoint, THIRDS) as (swarm, session):
        await session.step(PROMPT)
        whole.step(PROMPT)
        with monkeypatch.context() as broken:
            break_forward(broken, swarm.nodes[1])
            began = trio.current_time()
            with pytest.raises(StepFailed, match="out of luck"):
                await session.step([7])
            assert trio.current_time() - began < 6  # and not the 8.5 s in which somebody else might come
        assert np.array_equal(await session.step([7]), whole.step([7]))


async def test_an_answer_tells_which_losses_it_survived(home, checkpoint, whole):
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS]) as swarm:
        answer = swarm.client.generate(str(checkpoint), PROMPT, max_tokens=16)
        async for _ in answer:
            if len(answer.token_ids) == 5:
                lost = answer.route[1].peer
                swarm.kill(index_of(swarm, lost))
        assert answer.token_ids == whole.greedy(PROMPT, len(answer.token_ids))
        assert [r.lost for r in answer.reroutes] == [(lost,)]
        assert lost not in [stage.peer for stage in answer.route]
        assert 0 < answer.reroutes[0].gap_s < 8.5


async def test_news_of_a_lost_neighbour_that_comes_late_blames_nobody(home, checkpoint, whole, monkeypatch):
    """The thread that sends and the event loop both notice; by then another may be in its place."""
    lost_next, late = Hop.lost_next, []

    def twice(hop, way, reason):
        lost_next(hop, way, reason)
        late.append(lambda: lost_next(hop, way, reason))

    monkeypatch.setattr(Hop, "lost_next", twice)
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS]) as swarm:
        async with swarm.client.session(str(checkpoint), tokens=64) as session:

            def strike(token):
                if token == 5:
                    swarm.kill(index_of(swarm, session.ring.route[1].address.peer))
                if token == 9:
                    assert late
                    for again in late:
                        again()

            assert await decode(session, PROMPT, 16, strike) == whole.greedy(PROMPT, 16)
            assert [(r.way, len(r.lost)) for r in session.reroutes] == [("resend", 1)]
        await idle(swarm)


async def test_ten_sessions_survive_the_same_loss(home, checkpoint, whole):
    answers = {}
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS]) as swarm:
        dead = []

        async def one(number):
            prompt = [number + 1, 2 * number + 3, 5]
            answer = swarm.client.generate(str(checkpoint), prompt, max_tokens=24)
            async for _ in answer:
                if len(answer.token_ids) == 6 and not dead:
                    dead.append(index_of(swarm, answer.route[1].peer))
                    swarm.kill(dead[0])
            answers[number] = answer.token_ids

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, number)
        for number, tokens in answers.items():
            assert tokens == whole.greedy([number + 1, 2 * number + 3, 5], len(tokens))
        await idle(swarm)


async def test_losing_the_whole_network_is_an_error_and_no_endless_wait(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS, resume_s=1.0) as swarm:
        with pytest.raises((NoCoverage, ChannelClosed)):
            async with swarm.client.session(str(checkpoint), tokens=100) as session:
                await session.step(PROMPT)
                swarm.world.kill(swarm.client.network.peer)
                with trio.fail_after(20):
                    await session.step([1])
        await idle(swarm)


@pytest.mark.parametrize("failures", [1, 2])
async def test_the_only_node_of_a_span_that_has_just_failed_is_waited_for(home, checkpoint, whole, failures):
    """It may only have been busy: nobody must be told that the blocks are served by nobody."""
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        for number in range(failures):
            swarm.client.rings.finder.suspect(swarm.networks[1].peer)
            await trio.sleep(FIRST_S + 0.1 if number + 1 < failures else 0)
        with trio.fail_after(25):
            async with swarm.client.session(str(checkpoint), tokens=64) as session:
                assert await decode(session, PROMPT, 4) == whole.greedy(PROMPT, 4)


async def test_a_node_that_fails_again_and_again_is_not_waited_for(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS, announce_s=60.0, expiry_s=180.0) as swarm:
        finder, began = swarm.client.rings.finder, trio.current_time()
        for _ in range(5):
            finder.suspect(swarm.networks[1].peer)
            await trio.sleep(FIRST_S + 0.1)
        with pytest.raises(NoCoverage):
            async with swarm.client.session(str(checkpoint), tokens=64):
                pass
        assert trio.current_time() - began < 5 * (FIRST_S + 0.1) + 6  # and not the 10 s that opening may take


class Turns(trio.abc.Instrument):
    """Counts the turns that tasks take."""

    def __init__(self):
        self.taken = 0

    def before_task_step(self, task):
        self.taken += 1


@pytest.mark.usefixtures("step_by_step")
async def test_waiting_for_a_step_after_a_loss_does_not_spin(home, checkpoint, monkeypatch):
    async with at_work(home, checkpoint, [*THIRDS, *THIRDS]) as (swarm, session):
        submit, turns = Hop._submit, Turns()

        def late(hop, step, payload):
            if step.hops_left is None and step.position == len(PROMPT):
                loop = trio.lowlevel.current_trio_token()
                Timer(0.3, loop.run_sync_soon, (submit, hop, step, payload)).start()
            else:
                submit(hop, step, payload)

        await session.step(PROMPT)
        monkeypatch.setattr(Hop, "_submit", late)
        swarm.kill(index_of(swarm, session.ring.route[1].address.peer))
        trio.lowlevel.add_instrument(turns)
        await session.step([7])
        trio.lowlevel.remove_instrument(turns)
        assert turns.taken < 1000


async def test_a_session_opens_although_a_hop_is_gone_and_still_listed(home, checkpoint, whole, monkeypatch):
    monkeypatch.setattr("shoal.node.admission.DIAL_NEXT_S", 0.3)
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS[1:]], open_timeout_s=2.0) as swarm:
        gone = {swarm.networks[1].peer}
        monkeypatch.setattr(World, "reach", unreachable(World.reach, gone))
        for _ in range(6):
            async with swarm.client.session(str(checkpoint), tokens=64) as session:
                assert gone.isdisjoint(hop.address.peer for hop in session.ring.route)
                assert await decode(session, PROMPT, 4) == whole.greedy(PROMPT, 4)
        blamed = {peer for peer in swarm.client.rings.finder._suspects._held}
        assert blamed <= gone


async def test_a_session_opens_when_the_only_node_of_a_span_is_back_in_reach(
    home, checkpoint, whole, monkeypatch
):
    async with memory_swarm(home, checkpoint, THIRDS, announce_s=60.0, expiry_s=180.0) as swarm:
        gone = {swarm.networks[1].peer}
        monkeypatch.setattr(World, "reach", unreachable(World.reach, gone))
        hear_of_others = swarm.client.rings.finder.hear_of_others

        async def back_meanwhile(shape):
            heard = await hear_of_others(shape)
            gone.clear()
            return heard

        monkeypatch.setattr(swarm.client.rings.finder, "hear_of_others", back_meanwhile)
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            assert await decode(session, PROMPT, 4) == whole.greedy(PROMPT, 4)
        assert not gone


async def test_a_hop_that_blames_another_for_its_refusal_is_avoided(home, checkpoint, whole, monkeypatch):
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS[1:]], open_timeout_s=5.0) as swarm:
        liar, victim = swarm.networks[1].peer, swarm.networks[0].peer

        def lie(*_):
            raise NextHopUnreachable(victim, ChannelClosed("it does not answer"))

        monkeypatch.setattr(swarm.nodes[1].server._sessions, "begin", lie)
        for _ in range(4):
            async with swarm.client.session(str(checkpoint), tokens=64) as session:
                assert liar not in {hop.address.peer for hop in session.ring.route}
                assert await decode(session, PROMPT, 4) == whole.greedy(PROMPT, 4)
        assert victim not in swarm.client.rings.finder._suspects._held


def unreachable(reach, gone):
    """A machine that is gone: whoever dials it hears nothing, until he gives up."""

    def tried(world, a, b):
        if b in gone:
            raise ChannelClosed(f"{b} did not answer")
        return reach(world, a, b)

    return tried


class Slowed:
    """A runner that has got slow, as beside other programs."""

    def __init__(self, runner, seconds):
        self._runner = runner
        self._seconds = seconds

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def forward(self, batch):
        time.sleep(self._seconds)
        return self._runner.forward(batch)


def slow_down(node, seconds):
    node.engine.runner = Slowed(node.engine.runner, seconds)


@pytest.mark.usefixtures("step_by_step")
async def test_a_slow_hop_is_replaced_when_that_pays(home, checkpoint, whole):
    async with at_work(home, checkpoint, [*THIRDS, *THIRDS]) as (swarm, session):
        peer = session.ring.route[1].address.peer

        def slow(token):
            if token == 3:
                slow_down(swarm.nodes[index_of(swarm, peer)], 0.1)

        assert await decode(session, PROMPT, 36, slow) == whole.greedy(PROMPT, 36)
        assert [(r.way, r.lost) for r in session.reroutes] == [("resend", (peer,))]
        assert peer not in {hop.address.peer for hop in session.ring.route}
        # It is free at once, and not one that is gone.
        assert swarm.nodes[index_of(swarm, peer)].server.sessions == 0


@pytest.mark.usefixtures("step_by_step")
async def test_a_slow_hop_that_nobody_can_replace_is_kept(home, checkpoint, whole):
    async with at_work(home, checkpoint, THIRDS) as (swarm, session):

        def slow(token):
            if token == 3:
                slow_down(swarm.nodes[1], 0.03)

        assert await decode(session, PROMPT, 36, slow) == whole.greedy(PROMPT, 36)
        assert session.reroutes == []
