"""Who asks a hop for the rows that it sent, with ill will: bounded, and nobody else waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.errors import Busy, NotAllowed
from shoal.node.audits.reveal import BURST_S, REVEAL_WITHIN_S, TIMES, RevealPace
from shoal.testing.byhand import MINE, THEIRS, ByHand, a_step, an_open, by_hand, rows
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from shoal.wire.fields import NextHop
from shoal.wire.messages import MAX_REVEALED, Opened, Reveal, Revealed

HALVES = [Span(0, 3), Span(3, 6)]
WIDTH = 64


async def shown(
    client: ByHand, first: int = 0, tokens: int = 2, session: bytes = MINE
) -> tuple[Revealed, bytes]:
    reply, payload = await client.ask(Reveal(session, first, tokens))
    assert isinstance(reply, Revealed)
    return reply, payload


async def test_a_hop_shows_what_it_sent_to_its_client_alone_and_only_so_often(
    tmp_path: Path, checkpoint: Path
) -> None:
    async with (
        memory_swarm(tmp_path / "home", checkpoint, HALVES) as swarm,
        by_hand(swarm.world.network(), swarm.networks[1].address) as last,
        by_hand(swarm.world.network(), swarm.networks[0].address) as client,
        by_hand(swarm.world.network(), swarm.networks[0].address) as stranger,
    ):
        digest, onward = swarm.model.digest, NextHop.of(swarm.networks[1].address)
        await last.ask(an_open(digest, 6, start=3, previous=swarm.networks[0].peer, hop=1))
        opened, _ = await client.ask(an_open(digest, 3, next=onward))
        assert isinstance(opened, Opened)
        assert "not kept" in (await shown(client))[0].refused  # no step yet
        await client.send(a_step(WIDTH), rows(WIDTH))
        await last.receive()
        reply, payload = await shown(client)
        assert (reply.first, reply.rows, len(payload)) == (0, 2, 2 * 4 * WIDTH)
        assert (await shown(client, 1, 1))[1] == payload[len(payload) // 2 :]
        assert "not kept" in (await shown(client, 1 << 20, 1 << 20))[0].refused
        for one, session in ((stranger, MINE), (client, THEIRS)):
            assert (await shown(one, session=session))[
                0
            ].refused == "no such session here, or not of this peer"
        said = [(await shown(client, 0, 32))[0].refused for _ in range(TIMES)]
        assert f"{TIMES} times" in said[-1]
        assert swarm.nodes[0].server.sessions == 1  # the session itself goes on


def test_all_sessions_together_are_shown_no_more_than_a_rate() -> None:
    pace = RevealPace(bytes_s=MAX_REVEALED)
    assert pace.wait_s(MAX_REVEALED // 2, 100.0) == 0.0
    waits = [pace.wait_s(MAX_REVEALED, 100.0) for _ in range(int(REVEAL_WITHIN_S))]
    assert waits == [n + 1.0 for n in range(int(REVEAL_WITHIN_S))]
    with pytest.raises(Busy, match="as much as it may"):
        pace.wait_s(MAX_REVEALED, 100.0)
    assert pace.wait_s(MAX_REVEALED, 101.0 + BURST_S) == pytest.approx(REVEAL_WITHIN_S - BURST_S, abs=0.01)


def test_one_question_of_a_session_is_answered_at_a_time() -> None:
    hop: Any = type("PretendedHop", (), {})()
    hop.opened = type("Opened", (), {"tokens": 10})()
    pace = RevealPace()
    pace.begin(hop, 10)
    with pytest.raises(Busy, match="already"):
        pace.begin(hop, 1)
    for _ in range(TIMES - 1):
        pace.end(hop)
        pace.begin(hop, 10)
    pace.end(hop)
    with pytest.raises(NotAllowed, match="times"):
        pace.begin(hop, 1)
