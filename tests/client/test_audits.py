"""Audits of real sessions: whoever computes something else is named, and nobody else ever is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from shoal.client.answer import Answer
from shoal.node import node
from shoal.testing.cheats import CHEATS, cheating
from shoal.testing.swarm import MemorySwarm, memory_swarm
from shoal.types import PeerId, Span

SPANS = [Span(0, 2), Span(2, 4), Span(4, 6)]
PROMPT = [5, 9, 2, 31, 8, 77, 3] * 6
COUNT = 24
CHEAT = 1
"""The place of the hop that cheats."""
WHOLE = 3.0
"""A budget with which every hop of every answer is audited."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@asynccontextmanager
async def swarm_with(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cheat: str, *more: Span, **options: Any
) -> AsyncGenerator[MemorySwarm]:
    """Three hops of which the second one cheats, and others beside them."""
    async with memory_swarm(home, checkpoint, [SPANS[0], SPANS[2]], format="int8", **options) as swarm:
        with monkeypatch.context() as patch:
            patch.setattr(node, "load_runner", cheating(cheat))
            await swarm.add_node(SPANS[CHEAT], format="int8")
        for span in more:
            await swarm.add_node(span, format="int8")
        swarm.client.audits.chance = lambda: 0.999  # whole answers
        yield swarm


async def answered(
    swarm: MemorySwarm, folder: Path, prompt: list[int] = PROMPT, *, only: list[PeerId] | None = None
) -> Answer:
    answer = swarm.client.generate(str(folder), prompt, max_tokens=COUNT, protect="audited")
    async for _ in answer:
        pass
    return answer


@pytest.mark.parametrize("cheat", CHEATS)
async def test_a_cheat_is_named_by_who_has_the_weights(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cheat: str
) -> None:
    async with swarm_with(home, checkpoint, monkeypatch, cheat, audit_budget=WHOLE) as swarm:
        liar = swarm.networks[2].peer
        if cheat == "replay":
            await answered(swarm, checkpoint, [1, 2, 3] * 14)
        answer = await answered(swarm, checkpoint)
        found = answer.protection
        print(found.said)
        assert {audit.peer for audit in found.cheats} == {liar}
        assert found.level == "fast"
        assert swarm.client.rings.finder.reputation.distrusted(liar, trio.current_time())
