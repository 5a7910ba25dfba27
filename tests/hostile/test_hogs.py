"""Peers that take a node's room and do little with it (docs/hostile.md 25), against node processes.

All come from this host, as the honest client does: their identities are all that tells them apart.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import count
from pathlib import Path

import pytest
import trio

from shoal import config
from shoal.client.connect import open_swarm
from shoal.client.swarm import Swarm
from shoal.errors import Busy
from shoal.net.host import NetworkSettings, open_network
from shoal.net.identity import Identity
from shoal.node.fair_share import RETRY_S
from shoal.swarm.announcement import Announcement
from shoal.testing.byhand import ByHand, a_step, an_open, by_hand, rows
from shoal.wire.messages import Message, Opened, Step
from tests.hostile.conftest import BLOCKS, PIECES, WIDTH, Reference, honest
from tests.processes.conftest import Processes, processes

pytestmark = pytest.mark.swarm

KV = 1024
"""Tokens of KV that each node has."""
PLACES = 16
NODES = 2
ANSWERED_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Generator[Processes]:
    """Two nodes with little KV and few places, for all tests here."""
    options = {"format": "fp32", "kv_tokens": KV, "max_sessions": PLACES, "announce_s": 1.0}
    with processes(tmp_path_factory.mktemp("home"), str(checkpoint), BLOCKS, NODES, **options) as booted:
        yield booted


class Hog:
    """One identity, with a channel and a session at each node, which it fills as far as it likes."""

    def __init__(self, channels: Sequence[ByHand], nodes: Sequence[Announcement]) -> None:
        self._nodes = list(zip(channels, nodes, strict=True))
        self._session = os.urandom(16)
        self._numbers = count(1)

    async def open(self, tokens: int = KV) -> list[Message]:
        """Ask each node for a session that may grow so far."""
        self._session = os.urandom(16)
        answers: list[Message] = []
        for channel, node in self._nodes:
            assert node.served is not None
            start, end = node.served.start, node.served.end
            asked = {"session": self._session, "tokens": tokens, "start": start, "end": end}
            answers.append((await channel.ask(an_open(node.served.digest, BLOCKS, **asked)))[0])
        return answers

    async def fill(self, tokens: int) -> None:
        """Have each node compute so many tokens, and wait for it."""
        for channel, _ in self._nodes:
            answer, _ = await channel.ask(self._step(0, tokens), rows(WIDTH, tokens))
            assert isinstance(answer, Step)

    async def keep_stepping(self, position: int, every_s: float) -> None:
        """The same token again and again, whatever the nodes say."""
        while True:
            for channel, _ in self._nodes:
                await channel.send(self._step(position, 1), rows(WIDTH, 1))
            await trio.sleep(every_s)

    def _step(self, position: int, tokens: int) -> Step:
        sized = {"position": position, "tokens": tokens, "rows": tokens, "wanted": 0}
        return a_step(WIDTH, self._session, number=next(self._numbers), **sized)


class Attack:
    """An honest client of the nodes, and as many hogs as wanted."""

    def __init__(self, swarm: Processes, client: Swarm, nursery: trio.Nursery, reference: Reference) -> None:
        self.client = client
        self.nursery = nursery
        self._swarm = swarm
        self._logits = reference.logits(PIECES)

    async def hog(self) -> Hog:
        """One more identity from this host."""
        return await self.nursery.start(self._live)

    async def _live(self, *, task_status: trio.TaskStatus[Hog]) -> None:
        secret = self._swarm.local.membership.secret
        own = NetworkSettings(Identity.ephemeral(), secret, host="127.0.0.1", listen=False)
        nodes = self.client.announcements()
        assert len(nodes) == NODES
        async with AsyncExitStack() as stack:
            network = await stack.enter_async_context(open_network(own))
            channels = [await stack.enter_async_context(by_hand(network, a.address)) for a in nodes]
            task_status.started(Hog(channels, nodes))
            await trio.sleep_forever()

    async def ask(self, within_s: float = ANSWERED_WITHIN_S) -> None:
        """An honest session has its answer, the right one, in time and without a detour.

        One that is told to come back does, as the gateway would: its last session may be there still.
        """
        with trio.fail_after(within_s):
            while True:
                with suppress(Busy):
                    async with self.client.session(self._swarm.model, tokens=64) as session:
                        await honest(session, PIECES, self._logits)
                        assert not session.reroutes
                        return
                await trio.sleep(RETRY_S / 4)


@pytest.fixture
async def attack(nodes: Processes, reference: Reference, tmp_path: Path) -> AsyncGenerator[Attack]:
    """A client that has had an answer, and nobody else."""
    given = {"mdns": False, "host": "127.0.0.1", "format": "fp32"}
    settings = config.load(given, {"SHOAL_HOME": str(tmp_path)})
    async with open_swarm(settings, nodes.local.membership) as client, trio.open_nursery() as nursery:
        attack = Attack(nodes, client, nursery, reference)
        await attack.ask(within_s=15.0)
        yield attack
        nursery.cancel_scope.cancel()


async def test_25_one_that_asks_for_everything_at_every_node_keeps_nobody_waiting(attack: Attack) -> None:
    hog = await attack.hog()
    assert all(isinstance(answer, Opened) for answer in await hog.open())
    for _ in range(2):
        await attack.ask()


async def test_25_one_that_takes_every_place_and_opens_them_again_keeps_nobody_waiting(
    attack: Attack,
) -> None:
    hog = await attack.hog()

    async def grab() -> None:
        while True:
            await hog.open()
            await trio.sleep(0.05)

    attack.nursery.start_soon(grab)
    await trio.sleep(1)
    for _ in range(2):
        await attack.ask()


async def test_25_one_that_has_filled_every_node_and_steps_now_and_then_keeps_nobody_waiting(
    attack: Attack,
) -> None:
    hog = await attack.hog()
    await hog.open()
    await hog.fill(KV)
    attack.nursery.start_soon(hog.keep_stepping, KV - 1, 0.5)
    await trio.sleep(1)
    for _ in range(2):
        await attack.ask()


async def test_25_two_of_them_keep_nobody_waiting(attack: Attack) -> None:
    for _ in range(2):
        hog = await attack.hog()
        await hog.open(KV // 2)
        await hog.fill(KV // 2)
        attack.nursery.start_soon(hog.keep_stepping, KV // 2 - 1, 0.5)
    await trio.sleep(1)
    for _ in range(2):
        await attack.ask()


async def test_25_many_identities_of_one_host_keep_nobody_waiting(
    attack: Attack,
) -> None:
    """They have all places and all KV between them, each no more than an honest session, and step on."""
    for _ in range(PLACES):
        hog = await attack.hog()
        await hog.open(KV // PLACES)
        await hog.fill(KV // PLACES)
        attack.nursery.start_soon(hog.keep_stepping, KV // PLACES - 1, 0.5)
    for _ in range(2):
        await attack.ask()
