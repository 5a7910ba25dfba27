"""What every test of this folder promises after what it does to a swarm, and how that is looked at.

After each attack: the process lives; another client, in the middle of an answer, gets its tokens; memory,
descriptors, tasks and pages are back; and the next honest request gives what the whole model gives, in int8.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import pytest
import torch
import trio
from transformers import AutoModelForCausalLM, DynamicCache

from shoal.client.session import Session
from shoal.client.swarm import Swarm
from shoal.models.seam.model import cache_argument
from shoal.node.node import Node
from shoal.testing import byhand
from shoal.testing.byhand import ByHand, by_hand
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import MemorySwarm, memory_swarm
from shoal.types import Span
from shoal.wire.messages import Open, Step
from tests.one_process import KERNELS, OneProcess

PROMPT = list(range(5, 30))
ALIKE = {"format": KERNELS["format"], "numerics": "n1/int8/auto/rows"}
"""Fields of an ``Open`` by which a node here computes."""
BLOCKS, WIDTH = 6, 64
RSS_NOISE = 48 << 20
"""Bytes by which memory may differ before and after: allocators keep some."""


class AnySwarm(Protocol):
    """A client, and nodes that live in this process."""

    client: Swarm
    nodes: list[Node]


@dataclass(frozen=True)
class Holding:
    """What a process and its nodes hold at one moment."""

    descriptors: int
    tasks: int
    sessions: int
    pages: int
    promised: int
    unfinished: int

    def within(self, other: Holding) -> bool:
        """Whether this is no more than ``other`` in anything."""
        mine, theirs = vars(self), vars(other)
        return all(mine[name] <= theirs[name] for name in mine)


def holding(swarm: AnySwarm) -> Holding:
    """What this process holds now, for the nodes that live in it."""
    engines = [node.engine for node in swarm.nodes]
    return Holding(
        len(list(Path("/proc/self/fd").iterdir())),
        trio.lowlevel.current_statistics().tasks_living,
        sum(engine.sessions for engine in engines),
        sum(engine.pool.taken for engine in engines),
        sum(engine.tokens - engine.tokens_free for engine in engines),
        sum(node.server.channels.inbound.held for node in swarm.nodes),
    )


def resident() -> int:
    """Bytes of this process in memory, without those that the allocator has and nobody uses."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return psutil.Process().memory_info().rss


class Reference:
    """The whole model in transformers: what every honest request to nodes in fp32 must give, bit for bit."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._greedy: list[int] = []

    @torch.inference_mode()
    def logits(self, pieces: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The logits ``[tokens, vocab]`` after each piece, appended one after another."""
        cache: Any = DynamicCache(config=self.model.config)
        return [
            self.model(
                torch.tensor([list(piece)]), **cache_argument(self.model, cache), use_cache=True
            ).logits[0]
            for piece in pieces
        ]

    def greedy(self, count: int) -> list[int]:
        """The tokens that follow ``PROMPT``."""
        while len(self._greedy) < count:
            pieces = [PROMPT, *([token] for token in self._greedy)]
            self._greedy.append(int(self.logits(pieces)[-1][-1].argmax()))
        return self._greedy[:count]


PIECES: list[list[int]] = [PROMPT, *([token] for token in (7, 200, 41, 3, 299, 12))]
"""What an honest client appends, whatever comes out."""


async def honest(session: Session, pieces: Sequence[Sequence[int]], expected: Sequence[Any]) -> None:
    """Append ``pieces``, each of which must give what the whole model gives."""
    for piece, logits in zip(pieces, expected, strict=True):
        assert np.array_equal(await session.step(piece), logits), "an honest client's answer has changed"


@asynccontextmanager
async def unharmed(swarm: AnySwarm, checkpoint: Path, whole: OneProcess) -> AsyncGenerator[None]:
    """An attack in this block harms nobody: see the top of this file."""
    expected = whole.logits(PIECES)
    async with swarm.client.session(str(checkpoint), tokens=64) as first:
        await honest(first, PIECES, expected)
    async with swarm.client.session(str(checkpoint), tokens=64) as other:
        await honest(other, PIECES[:3], expected[:3])
        await trio.sleep(0.05)
        before, memory = holding(swarm), resident()
        yield
        await honest(other, PIECES[3:], expected[3:])
        assert not other.reroutes, "another client's route was lost"
        gc.collect()
        with trio.move_on_after(25):
            while not holding(swarm).within(before):  # noqa: ASYNC110
                await trio.sleep(0.05)
        after = holding(swarm)
        assert after.within(before), f"left behind: {after}, before: {before}"
        assert resident() - memory < RSS_NOISE, "memory was left behind"
    async with swarm.client.session(str(checkpoint), tokens=64) as last:
        await honest(last, PIECES, expected)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> OneProcess:
    """What every honest request to the nodes in this process must give, bit for bit."""
    return OneProcess(tmp_path_factory.mktemp("whole"), checkpoint)


@dataclass(frozen=True)
class Attack:
    """A swarm of one node that serves everything, and what an attacker needs."""

    swarm: MemorySwarm
    checkpoint: Path

    @asynccontextmanager
    async def stranger(self, node: int = 0) -> AsyncGenerator[ByHand]:
        """One more peer with a channel to a node."""
        network = self.swarm.world.network()
        async with by_hand(network, self.swarm.networks[node].address) as peer:
            yield peer
        del self.swarm.world.peers[network.peer]

    def open(self, **changes: Any) -> Open:
        """A request for a session at the first node."""
        return byhand.an_open(self.swarm.model.digest, BLOCKS, **ALIKE | changes)

    def step(self, **changes: Any) -> Step:
        """A step of two tokens."""
        return byhand.a_step(changes.pop("width", WIDTH), **changes)


@pytest.fixture
async def attack(
    tmp_path: Path, checkpoint: Path, whole: OneProcess, nursery: trio.Nursery
) -> AsyncGenerator[Attack]:
    """A swarm under attack, of which nothing may be left behind."""
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [Span(0, BLOCKS)], **KERNELS) as swarm,
        unharmed(swarm, checkpoint, whole),
    ):
        yield Attack(swarm, checkpoint)
