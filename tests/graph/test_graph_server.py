"""What a graph's node does with what peers send: honest or not, nobody else is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import trio

from shoal.errors import Busy, ChannelClosed, NotAllowed
from shoal.executor.graph.arrays import pack_arrays, unpack_arrays
from shoal.models.graph.manifest import GRAPH_NUMERICS, graph_digest
from shoal.net.channel import Channel
from shoal.node.fair_share import QUIET_S
from shoal.node.graph import graph_server, graph_sessions
from shoal.node.graph.graph_sessions import (
    MAX_REQUESTS,
    NETWORK_SHARE,
    PEER_SHARE,
    PER_SESSION,
    GraphSessions,
)
from shoal.testing import byhand
from shoal.testing.byhand import MINE, THEIRS, by_hand
from shoal.testing.graph_bits import same, whole
from shoal.testing.graph_swarm import GraphSwarm, graph_swarm
from shoal.testing.graphs import inputs_of
from shoal.types import SessionId, Span
from shoal.wire.fetching import Fetch, Fetched, NotFetched
from shoal.wire.fields import NextHop
from shoal.wire.inferring import Infer, Inferred
from shoal.wire.messages import Close, Failed, Opened, Refused, Step

from .conftest import Imported


@asynccontextmanager
async def one_node(imported: Imported, home: Path, **options: object) -> AsyncIterator[GraphSwarm]:
    """A node of all segments, which serves the next honest request whatever was done to it."""
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(home, graph, [Span(0, 8)], **options) as swarm:
        yield swarm
        assert swarm.nodes[0].server.waiting == 0
        assert same(await swarm.client.run(graph.digest, inputs), whole(graph, inputs))


def peer(swarm: GraphSwarm):
    return by_hand(swarm.world.network(), swarm.networks[0].address)


def an_open(swarm: GraphSwarm, session: bytes = MINE, **changes: object):
    numerics = str(GRAPH_NUMERICS)
    return byhand.an_open(
        swarm.graph.digest, 8, session=session, tokens=1, **{"numerics": numerics} | changes
    )


def an_infer(swarm: GraphSwarm, number: int = 1, session: bytes = MINE) -> tuple[Infer, bytes]:
    manifest, inputs = swarm.graph.manifest, inputs_of("mlp")
    specs, payload = pack_arrays({value: inputs[manifest.values[value].name] for value in manifest.inputs})
    return Infer(session, number, specs), payload


async def test_a_session_is_asked_again_and_again(imported: Imported, tmp_path: Path) -> None:
    async with one_node(imported, tmp_path) as swarm, peer(swarm) as me:
        assert isinstance((await me.ask(an_open(swarm)))[0], Opened)
        first, made = await me.ask(*an_infer(swarm))
        second, again = await me.ask(*an_infer(swarm, 2))
        assert isinstance(first, Inferred) and isinstance(second, Inferred)
        assert (first.number, second.number, made) == (1, 2, again)
        assert first.compute_us > 0
        found = unpack_arrays(first.arrays, made)
        assert list(found) == swarm.graph.manifest.gives(Span(0, 8))
        await me.send(Close(MINE))
        assert cast(Failed, (await me.ask(*an_infer(swarm, 3)))[0]).code == "unknown_session"


async def test_what_a_part_of_the_span_took_tells_of_the_whole_by_their_work(
    imported: Imported, tmp_path: Path
) -> None:
    graph = imported("transformer")
    count, work = len(graph.manifest.segments), graph.manifest.work
    assert max(work) > 4 * min(work)
    async with graph_swarm(tmp_path, graph, [Span(0, count)]) as swarm:
        server = swarm.nodes[0].server
        took_us = [round(1e5 * share) for share in work]  # of a machine that is as fast everywhere
        for index, us in enumerate(took_us):
            server.step_ms = 0.0
            server._note(Span(index, index + 1), us, 0)
            assert server.step_ms == pytest.approx(sum(took_us) / 1e3, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"digest": "sha256:" + "0" * 64}, "digest_mismatch"),
        ({"start": 3, "end": 9}, "not_allowed"),
        ({"format": "int8"}, "not_allowed"),
        ({"numerics": "n1/int8/auto/rows"}, "not_allowed"),
        ({"previous": "12D3KooWsomebody"}, "not_allowed"),
        ({"next": NextHop("12D3KooWsomebody")}, "not_allowed"),
    ],
)
async def test_a_session_that_is_not_served_is_refused(
    changes: dict[str, object], code: str, imported: Imported, tmp_path: Path
) -> None:
    async with one_node(imported, tmp_path) as swarm, peer(swarm) as me:
        refused, _ = await me.ask(an_open(swarm, **changes))
        assert isinstance(refused, Refused)
        assert refused.code == code


async def test_a_session_belongs_to_the_channel_that_opened_it(imported: Imported, tmp_path: Path) -> None:
    async with one_node(imported, tmp_path) as swarm, peer(swarm) as me, peer(swarm) as other:
        await me.ask(an_open(swarm))
        assert cast(Failed, (await other.ask(*an_infer(swarm)))[0]).code == "unknown_session"
        await other.send(Close(MINE))
        assert isinstance((await other.ask(an_open(swarm)))[0], Refused)
        assert isinstance((await me.ask(*an_infer(swarm)))[0], Inferred)


async def test_tensors_that_the_segments_do_not_take_are_refused(imported: Imported, tmp_path: Path) -> None:
    async with one_node(imported, tmp_path) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        first, second = swarm.graph.manifest.inputs
        wrong = {
            "take the values": {first: np.zeros((1, 32), np.float32)},
            "not of float64": {first: np.zeros((1, 32)), second: np.zeros((1, 32))},
            "not 1×31": {first: np.zeros((1, 31), np.float32), second: np.zeros((1, 32), np.float32)},
        }
        for why, arrays in wrong.items():
            specs, payload = pack_arrays(arrays)
            failed, _ = await me.ask(Infer(MINE, 1, specs), payload)
            assert isinstance(failed, Failed)
            assert why in failed.message
        specs, payload = pack_arrays({second: np.zeros((1, 32)), first: np.zeros((1, 32))})
        assert isinstance((await me.ask(Infer(MINE, 1, specs), payload))[0], Failed)


async def test_a_payload_of_another_size_and_a_step_close_the_channel(
    imported: Imported, tmp_path: Path
) -> None:
    async with one_node(imported, tmp_path) as swarm:
        message, payload = an_infer(swarm)
        for sent in ((message, payload[:-1]), (byhand.a_step(64), byhand.rows(64))):
            async with peer(swarm) as me:
                await me.send(*sent)
                with trio.fail_after(25), pytest.raises(ChannelClosed):
                    while True:
                        await me.channel.send(Close(MINE))
                        await trio.sleep(0.01)
                assert isinstance(sent[0], Infer | Step)


async def test_a_stranger_may_not_send_a_large_message_before_a_session_is_open(
    imported: Imported, tmp_path: Path
) -> None:
    async with one_node(imported, tmp_path) as swarm, peer(swarm) as me:
        first, second = swarm.graph.manifest.inputs
        large = np.zeros((20_000, 32), np.float32)
        specs, payload = pack_arrays({first: large, second: large})
        await me.send(Infer(MINE, 1, specs), payload)
        with trio.fail_after(25):
            while not me.channel.closed:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_the_manifest_and_chunks_are_given_and_nothing_else(imported: Imported, tmp_path: Path) -> None:
    async with one_node(imported, tmp_path) as swarm, peer(swarm) as me:
        digest = swarm.graph.digest
        fetched, raw = await me.ask(Fetch(7, digest, "manifest"))
        assert isinstance(fetched, Fetched)
        assert graph_digest(raw) == digest
        assert isinstance((await me.ask(Fetch(7, digest, "chunk")))[0], Fetched)  # the graph's structure
        for other in (
            Fetch(8, digest, "manifest", 0, 1),
            Fetch(8, digest, "chunk", 0, 1),
            Fetch(8, digest, "chunk", 100_000),
            Fetch(8, "sha256:" + "0" * 64, "manifest"),
        ):
            assert isinstance((await me.ask(other))[0], NotFetched)


async def test_who_leaves_in_the_midst_of_a_request_takes_it_along(
    imported: Imported, tmp_path: Path
) -> None:
    async with one_node(imported, tmp_path) as swarm:
        async with peer(swarm) as me:
            await me.ask(an_open(swarm))
            for number in range(PER_SESSION):
                await me.send(*an_infer(swarm, number))
        with trio.fail_after(25):
            while swarm.nodes[0].server.sessions or swarm.nodes[0].server.waiting:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_who_does_not_read_its_answers_loses_its_channel_and_its_places(
    imported: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_server, "READ_WITHIN_S", 0.2)
    monkeypatch.setattr(graph_server, "READ_BYTES_S", 1e9)
    async with one_node(imported, tmp_path) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        (pipe,) = [pipe for pipe in swarm.networks[0].pipes if pipe.peer == me.peer]
        pipe._bytes_s = 1e4  # pyright: ignore[reportPrivateUsage]
        manifest = swarm.graph.manifest
        rows = np.zeros((4096, 32), np.float32)  # more than one fragment comes back
        specs, payload = pack_arrays(dict.fromkeys(manifest.inputs, rows))
        for number in range(PER_SESSION):
            await me.send(Infer(MINE, number, specs), payload)
        with trio.fail_after(25):
            while not swarm.nodes[0].server.waiting:  # noqa: ASYNC110
                await trio.sleep(0.01)
            while swarm.nodes[0].server.waiting or swarm.nodes[0].server.sessions:  # noqa: ASYNC110
                await trio.sleep(0.01)
        monkeypatch.undo()  # who is asked next may be slow for a moment


def a_channel(peer: str = "me", host: str = "10.0.0.1") -> Channel:
    """Only who is at its other end matters here."""
    return cast(Channel, SimpleNamespace(peer=peer, host=host))


def an_id(number: int) -> SessionId:
    return SessionId(number.to_bytes(16, "big"))


def test_one_session_has_few_requests_and_all_together_have_a_bound() -> None:
    sessions = GraphSessions(1000)
    first, _ = sessions.open(SessionId(MINE), a_channel(), Span(0, 1), 0)
    for _ in range(PER_SESSION):
        sessions.begin(first, 10, 0)
    with pytest.raises(Busy, match="too many requests"):
        sessions.begin(first, 10, 0)
    for number in range(MAX_REQUESTS // PER_SESSION - 1):
        channel = a_channel(str(number), f"10.0.{number}.1")
        more, _ = sessions.open(an_id(number), channel, Span(0, 1), 0)
        for _ in range(PER_SESSION):
            sessions.begin(more, 10, 0)
    late, _ = sessions.open(SessionId(THEIRS), a_channel("late", "10.1.0.1"), Span(0, 1), 0)
    assert sessions.free == 0
    with pytest.raises(Busy):
        sessions.begin(late, 10, 0)
    sessions.end(first, 10, 0)
    sessions.begin(late, 10, 0)


def fill(sessions: GraphSessions, channel: Channel, first: int) -> int:
    """How many requests are taken of one who opens session after session, and closes them again."""
    for number in range(MAX_REQUESTS):
        session, _ = sessions.open(an_id(first + number), channel, Span(0, 1), 0)
        try:
            sessions.begin(session, 10, 0)
        except Busy:
            return number
        sessions.close(session.session, channel)
    return MAX_REQUESTS


def test_one_peer_and_one_network_leave_requests_to_others() -> None:
    sessions = GraphSessions(1000)
    assert fill(sessions, a_channel("hog"), 0) == MAX_REQUESTS * PEER_SHARE
    left = MAX_REQUESTS * (NETWORK_SHARE - PEER_SHARE)
    assert fill(sessions, a_channel("its neighbour", "10.0.0.2"), 100) == left
    assert fill(sessions, a_channel("another neighbour", "10.0.0.3"), 200) == 0
    assert fill(sessions, a_channel("somebody", "10.7.0.1"), 300) == MAX_REQUESTS * (1 - NETWORK_SHARE)


def test_requests_that_are_too_large_together_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_sessions, "MAX_REQUEST_BYTES", 100)
    sessions = GraphSessions(10)
    session, _ = sessions.open(SessionId(MINE), a_channel(), Span(0, 1), 0)
    sessions.begin(session, 150, 0)  # one alone, however large
    with pytest.raises(Busy, match="too large together"):
        sessions.begin(session, 1, 0)
    sessions.end(session, 150, 0)
    assert (sessions.requests, sessions.request_bytes) == (0, 0)


def test_answers_that_are_not_read_take_the_room_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_sessions, "MAX_REQUEST_BYTES", 100)
    sessions, channel = GraphSessions(10), a_channel()
    session, _ = sessions.open(SessionId(MINE), channel, Span(0, 1), 0)
    sessions.begin(session, 1, 0)
    sessions.begin(session, 1, 0)
    sessions.answered(session, 1, 40)
    assert sessions.owed(channel) == 41
    with pytest.raises(Busy, match="too large together"):
        sessions.answered(session, 1, 40)
    other, _ = sessions.open(SessionId(THEIRS), a_channel("other", "10.9.0.1"), Span(0, 1), 0)
    with pytest.raises(Busy, match="too large together"):
        sessions.begin(other, 60, 0)
    sessions.end(session, 40, 0)
    sessions.begin(other, 60, 0)
    sessions.end(session, 1, 0)
    sessions.end(other, 60, 0)
    assert (sessions.requests, sessions.request_bytes) == (0, 0)


def test_an_idle_session_gives_its_place_and_a_busy_one_keeps_it() -> None:
    sessions = GraphSessions(2)
    opened = partial(sessions.open, channel=a_channel(), span=Span(0, 1))
    busy, _ = opened(SessionId(b"b" * 16), now=0)
    idle, _ = opened(SessionId(b"i" * 16), now=1)
    for session in (busy, idle):
        sessions.begin(session, 1, 1)
    sessions.end(idle, 1, 1)
    with pytest.raises(Busy, match="all 2 sessions"):
        opened(SessionId(MINE), now=1 + QUIET_S)
    _, gone = opened(SessionId(MINE), now=2 + QUIET_S)
    assert gone == [idle]
    with pytest.raises(NotAllowed):
        opened(SessionId(MINE), now=99)
    with pytest.raises(Busy):
        opened(SessionId(THEIRS), now=2 + QUIET_S)


def test_who_has_all_places_and_works_lets_a_newcomer_in() -> None:
    sessions = GraphSessions(4)
    for number in range(4):
        session, _ = sessions.open(an_id(number), a_channel("hog"), Span(0, 1), 0)
        sessions.begin(session, 1, 0)
    with pytest.raises(Busy, match="all 4 sessions"):
        sessions.open(an_id(9), a_channel("hog"), Span(0, 1), 0)
    _, gone = sessions.open(SessionId(MINE), a_channel("newcomer", "10.9.0.1"), Span(0, 1), 0)
    assert [lost.channel.peer for lost in gone] == ["hog"]
    assert sessions.requests == 4  # what was begun is held until it is over
