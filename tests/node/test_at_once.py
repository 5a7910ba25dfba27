"""Steps that run where they come give what the ordinary way gives: the same answers, refusals and figures."""

from __future__ import annotations

import math
import struct
from contextlib import asynccontextmanager
from functools import partial
from typing import get_args

import msgspec
import numpy as np
import pytest
import torch
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shoal.client.sampling import Sampler, Sampling
from shoal.executor import batcher as batcher_module
from shoal.executor.codecs import encode
from shoal.executor.kernels.c_kernels import library
from shoal.node import server as server_module
from shoal.testing import byhand
from shoal.testing.byhand import MINE, THEIRS, by_hand
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Codec, Span
from shoal.wire.framing import Outgoing
from shoal.wire.messages import Close, Failed, Locate, Located, Opened, Step
from shoal.wire.payload import encoded_bytes, hidden_states, int6_outliers

pytestmark = pytest.mark.skipif(library() is None, reason="the C kernels are not built")
WIDTH, TOKENS = 64, 40
APART = b"a" * 16
"""A session that nothing is done with."""
CODECS = get_args(Codec)
an_open = partial(byhand.an_open, format="int8", tokens=TOKENS, numerics="n1/int8/auto/rows")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def at_once(monkeypatch):
    """How many records ran where they came, of each node."""
    counted = {}
    run = server_module.run_at_once

    def counting(sessions, engine, channel, data):
        done = run(sessions, engine, channel, data)
        counted[engine] = counted.get(engine, 0) + done
        return done

    monkeypatch.setattr(server_module, "run_at_once", counting)
    monkeypatch.setattr(batcher_module, "AT_ONCE_S", math.inf)  # on a busy machine forwards may take long
    return counted


def row(codec, value, width=WIDTH):
    """A row of hidden states of which no two blocks are the same."""
    numbers = [value * (1 + i % 7) for i in range(width)]
    if codec == "float32":
        return struct.pack(f"<{width}f", *numbers)
    if codec == "bfloat16":
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    scale, shift = (0.01, int(100 * value)) if math.isfinite(value) else (value, 0)
    blocks = -(-width // 64)
    if codec == "int8":
        return struct.pack("<f", scale) * blocks + bytes((17 * i + shift) % 256 for i in range(width))
    places = int6_outliers(width)
    packed = bytes((17 * i + shift) % 256 for i in range((6 * width + 7) // 8))
    return (
        bytes(range(places))
        + struct.pack("<f", value)[2:] * places
        + struct.pack("<f", scale)[2:] * blocks
        + packed
    )


def decode_step(session, number, position, codec="float32", **changes):
    return msgspec.structs.replace(
        Step(session, number, position, 1, 1, hidden_states(codec, 1, WIDTH)), **changes
    )


class Twins:
    """Two nodes of the same blocks, and one peer at both; the second node takes the ordinary way."""

    def __init__(self, swarm, peers):
        self.swarm, self._peers = swarm, peers

    async def tell(self, *sent):
        """Send messages in one record; what both nodes say to them."""
        return await self.tell_bytes(b"".join(Outgoing(n, *m).whole() for n, m in enumerate(sent)))

    async def tell_bytes(self, record):
        said = [await _told(*each, record) for each in zip(self.swarm.nodes, self._peers, strict=True)]
        assert said[0] == said[1]
        return said[0]

    def figures(self):
        """What each node has counted of its steps."""
        return [(node.server.load.steps, node.server.load.tokens) for node in self.swarm.nodes]


async def _told(node, peer, record):
    await peer.channel._pipe.send_all(record)
    said = await _heard_before_located(peer)
    with trio.fail_after(25):
        while not node.engine._batcher.idle:  # noqa: ASYNC110
            await trio.sleep(0.001)
    return sorted(said + await _heard_before_located(peer), key=repr)


async def _heard_before_located(peer):
    """All that a node says before it answers where a session is of which nothing else is said."""
    await peer.send(Locate(APART))
    heard = []
    while not (heard and isinstance(heard[-1][0], Located)):
        message, payload = await peer.receive()
        if isinstance(message, Step):
            assert [time.hop for time in message.times][-1:] == [0]
            message = msgspec.structs.replace(message, times=message.times[:-1])
        heard.append((message, payload))
    return heard[:-1]


@asynccontextmanager
async def twins(home, checkpoint, **options):
    async with memory_swarm(home, checkpoint, [Span(0, 6)] * 2, format="int8", **options) as swarm:
        swarm.nodes[1].engine.decode_steps = None
        a, b = (by_hand(swarm.world.network(), network.address) for network in swarm.networks)
        async with a as one, b as other:
            for peer in (one, other):
                for session in (MINE, THEIRS, APART):
                    opened, _ = await peer.ask(an_open(swarm.model.digest, 6, session=session))
                    assert isinstance(opened, Opened)
            yield Twins(swarm, (one, other))


async def test_steps_that_go_on_run_where_they_come(tmp_path, checkpoint, at_once):
    async with twins(tmp_path / "home", checkpoint) as both:
        # From its beginning, a session may go on in another codec.
        places = [(codec, position) for codec in CODECS for position in range(TOKENS // 2)]
        for number, (codec, position) in enumerate(places, 1):
            step = decode_step(MINE, number, position, codec)
            [(result, payload)] = await both.tell((step, row(codec, 0.1 * position)))
            assert result == step
            assert len(payload) == encoded_bytes(1, WIDTH, codec)
        # The first, before anybody knew how long a forward takes, and where the KV goes on in a new page.
        count = len(places)
        assert at_once[both.swarm.nodes[0].engine] >= count - 4 * len(CODECS)
        assert at_once[both.swarm.nodes[1].engine] == 0
        assert both.figures() == [(count, count)] * 2
        text = both.swarm.nodes[0].server.load.metrics.text().decode()
        assert f'shoal_steps_total{{phase="decode"}} {count}.0' in text
        assert len(both.swarm.nodes[0].server.load.trace.steps) == count


@pytest.mark.parametrize("codec", CODECS)
async def test_a_step_in_another_codec_is_refused_and_the_session_goes_on(
    tmp_path, checkpoint, at_once, codec
):
    other = CODECS[CODECS.index(codec) - 1]
    async with twins(tmp_path / "home", checkpoint) as both:
        for position in range(4):
            await both.tell((decode_step(MINE, 1 + position, position, codec), row(codec, 0.5)))
        before = dict(at_once)
        [(failed, _)] = await both.tell((decode_step(MINE, 5, 4, other), row(other, 0.5)))
        assert isinstance(failed, Failed)
        assert (failed.code, failed.number) == ("remote_protocol", 5)
        assert f"a step in {other}" in failed.message
        assert at_once == before
        for number, position in ((6, 4), (7, 5)):
            [(result, _)] = await both.tell((decode_step(MINE, number, position, codec), row(codec, 0.5)))
            assert isinstance(result, Step)
        assert at_once[both.swarm.nodes[0].engine] > before[both.swarm.nodes[0].engine]


async def test_steps_of_several_sessions_come_and_go_in_one_record(tmp_path, checkpoint, at_once):
    async with twins(tmp_path / "home", checkpoint) as both:
        for position in range(12):
            sent = [
                (decode_step(session, 1 + position, position), row("float32", value + position))
                for session, value in ((MINE, 0.5), (THEIRS, -0.25))
            ]
            assert len(await both.tell(*sent)) == 2
        assert at_once[both.swarm.nodes[0].engine] >= 10


async def test_somebody_elses_steps_run_nowhere(tmp_path, checkpoint, at_once):
    async with twins(tmp_path / "home", checkpoint) as both:
        for position in range(4):
            await both.tell((decode_step(MINE, 1 + position, position), row("float32", 0.5)))
        node, before = both.swarm.nodes[0], dict(at_once)
        async with by_hand(both.swarm.world.network(), both.swarm.networks[0].address) as stranger:
            said, _ = await stranger.ask(decode_step(MINE, 5, 4), row("float32", 0.5))
            assert isinstance(said, Failed)
        assert (at_once, node.server.load.steps) == (before, 4)
        await both.tell((decode_step(MINE, 5, 4), row("float32", 0.5)))
        assert at_once[node.engine] == before[node.engine] + 1


async def test_what_is_not_finite_fails_its_own_step_alone(tmp_path, checkpoint, at_once):
    async with twins(tmp_path / "home", checkpoint) as both:
        for position in range(4):
            await both.tell((decode_step(MINE, 1 + position, position), row("float32", 0.5)))
        [(failed, _)] = await both.tell((decode_step(MINE, 5, 4), row("float32", float("nan"))))
        assert isinstance(failed, Failed)
        assert failed.code == "step_failed"
        for number, position in ((6, 4), (7, 5)):
            [(result, _)] = await both.tell((decode_step(MINE, number, position), row("float32", 0.5)))
            assert isinstance(result, Step)


async def test_an_answer_is_the_same_when_a_hop_dies_within_it(tmp_path, checkpoint, at_once):
    greedy, thirds = Sampler(Sampling()), [Span(0, 2), Span(2, 4), Span(4, 6)]

    async def answer(swarm, before_token):
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            chosen = [(await session.advance([1, 2, 3], greedy, more=True)).token]
            while len(chosen) < 30:
                before_token(session, len(chosen))
                chosen.append((await session.advance(chosen[-1:], greedy, more=True)).token)
            return chosen, [(reroute.way, len(reroute.lost)) for reroute in session.reroutes]

    def strike(session, token):
        if token == 15:
            middle = session.ring.route[1].address.peer
            swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == middle))

    async with memory_swarm(tmp_path / "home", checkpoint, thirds * 2, format="int8") as swarm:
        whole, _ = await answer(swarm, lambda *_: None)
        assert sum(at_once.values()) > 60
        # Of what ran where it came all was kept, so nothing is computed again.
        assert await answer(swarm, strike) == (whole, [("resend", 1)])


# What a peer may do next with a session: go on, and all kinds of things beside.
values = st.sampled_from([0.25, -3.0, 1e30, float("inf")])
operations = st.one_of(
    st.tuples(st.just("on"), st.sampled_from([MINE, THEIRS]), st.sampled_from(CODECS), values),
    st.tuples(st.just("on"), st.sampled_from([MINE, THEIRS]), st.none(), st.just(0.25)),
    st.tuples(st.just("both"), st.none(), values),
    st.tuples(st.just("back"), st.sampled_from([MINE, THEIRS]), st.integers(0, 9)),
    st.tuples(st.just("gap"), st.sampled_from([MINE, THEIRS]), st.integers(1, 9)),
    st.tuples(st.just("many"), st.sampled_from([MINE, THEIRS]), st.integers(2, 17)),
    st.tuples(st.just("twice"), st.sampled_from([MINE, THEIRS])),
    st.tuples(st.just("fill"), st.sampled_from([MINE, THEIRS])),
    st.tuples(st.just("unwanted"), st.sampled_from([MINE, THEIRS])),
    st.tuples(st.just("narrow"), st.sampled_from([MINE, THEIRS])),
    st.tuples(st.just("long"), st.sampled_from([MINE, THEIRS])),
    st.tuples(st.just("beside"), st.sampled_from([MINE, THEIRS])),
    st.tuples(st.just("close"), st.just(THEIRS)),
)


def messages(operation, number, lengths, usual):
    """What an operation sends when the sessions are as long as ``lengths`` says; ``usual`` is their codec."""
    kind, session = operation[0], operation[1]
    at = lengths.get(session, 0)

    def step(rows=1, position=at, session=session, codec=None, value=0.25, width=WIDTH, **changes):
        codec = codec or usual
        made = Step(session, number, position, rows, 1, hidden_states(codec, rows, width))
        many = np.full((rows, width), value, np.float32)
        payload = row(codec, value, width) if rows == 1 else encode(many, codec)
        return msgspec.structs.replace(made, **changes), payload

    if kind == "both":
        codec, value = operation[1:]
        return [step(1, lengths[s], s, codec, value) for s in (MINE, THEIRS)]
    ways = {
        "on": lambda codec, value: [step(codec=codec, value=value)],
        "back": lambda by: [step(position=max(0, at - by))],
        "gap": lambda by: [step(position=at + by)],
        "many": lambda rows: [step(rows)],
        "twice": lambda: [step()],
        "fill": lambda: [step(hops_left=0, number=0, wanted=0)],
        "unwanted": lambda: [step(wanted=0)],
        "narrow": lambda: [step(width=WIDTH - 1)],
        "long": lambda: [step(sequence_length=TOKENS + 1)],
        "beside": lambda: [step(), (Locate(b"n" * 16), b"")],
        "close": lambda: [(Close(session), b"")],
    }
    return ways[kind](*operation[2:])


@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.generate],  # each example is two nodes: to find a shorter one would take long
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(CODECS), st.lists(operations, min_size=30, max_size=60))
def test_both_ways_say_the_same_to_any_history(tmp_path, checkpoint, usual, history):
    async def run():
        async with twins(tmp_path / "home", checkpoint) as both:
            lengths = {MINE: 0, THEIRS: 0}
            for number, operation in enumerate(
                [("on", MINE, usual, 0.25), ("on", THEIRS, usual, 0.25), *history]
            ):
                sent = messages(operation, number + 1, lengths, usual)
                # One after the other: of two that come together the first is dropped if it still waits.
                for _ in range(2 if operation[0] == "twice" else 1):
                    await both.tell(*sent)
                for hop in both.swarm.nodes[0].server._sessions:
                    lengths[hop.session] = hop.queue.length
            assert both.figures()[0] == both.figures()[1]

    trio.run(run)
