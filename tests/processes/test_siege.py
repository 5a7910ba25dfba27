"""One host takes every door and every channel of real nodes: whoever comes new is let in all the same."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from shoal import config
from shoal.client.connect import open_swarm
from shoal.config import Settings
from shoal.errors import ChannelClosed
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.channel import Channel
from shoal.net.identity import Identity
from shoal.net.pool import CHANNELS_LIMIT
from shoal.types import PeerId
from shoal.wire.messages import Message

from .conftest import Processes, processes

pytestmark = [pytest.mark.swarm, pytest.mark.alone]

PROMPT = list(range(5, 30))
SILENT = 500
CHANNELS = 8
"""Of one key; of the keys there are so many that they would have all places that a node has."""
LATER_S = 3.0
"""What an attack may delay a newcomer's answer by."""


@dataclass
class Victims:
    """Nodes that answer rightly, and how long somebody who has never been there waits for it."""

    swarm: Processes
    settings: Settings
    right: list[int] = field(default_factory=list[int])
    doors: dict[PeerId, list[int]] = field(default_factory=dict[PeerId, list[int]])
    """The ports of each node, that of its direct channels last."""

    async def newcomer(self) -> float:
        """Seconds until somebody new has his answer, which is right."""
        began = time.monotonic()
        async with open_swarm(self.settings, self.swarm.local.membership) as swarm:
            answer = swarm.generate(self.swarm.model, PROMPT, max_tokens=len(self.right) or 8)
            async for _ in answer:
                pass
            for node in swarm.announcements():
                self.doors[PeerId(node.peer)] = [int(a.rpartition("/")[2]) for a in node.libp2p + node.direct]
        self.right = self.right or answer.token_ids
        assert answer.token_ids == self.right
        return time.monotonic() - began


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Generator[Processes]:
    """Three that start and answer soon: on the kernels, without torch."""
    with processes(tmp_path_factory.mktemp("siege"), str(checkpoint), 6, format="int8") as booted:
        yield booted


@pytest.fixture
async def victims(nodes: Processes, tmp_path: Path) -> Victims:
    given = {"host": "127.0.0.1", "mdns": False, "threads": 1, "format": "int8"}
    found = Victims(nodes, config.load(given, {"SHOAL_HOME": str(tmp_path)}))
    await found.newcomer()
    return found


async def test_500_who_say_nothing_at_the_doors_keep_no_newcomer_out(victims: Victims) -> None:
    async def hold(port: int) -> None:
        while True:
            with suppress(OSError, trio.BrokenResourceError):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    while await stream.receive_some():
                        pass
            await trio.sleep(0.2)

    quiet_s = await victims.newcomer()
    async with trio.open_nursery() as nursery:
        ports = [port for ports in victims.doors.values() for port in ports]
        for number in range(SILENT):
            nursery.start_soon(hold, ports[number % len(ports)])
        await trio.sleep(2)
        assert await victims.newcomer() < quiet_s + LATER_S
        nursery.cancel_scope.cancel()


async def test_a_node_all_of_whose_channels_one_host_has_lets_a_newcomer_in(victims: Victims) -> None:
    """Its 128 keys say hello, and answer every ping."""

    async def ignore(channel: Channel, message: Message, payload: bytes) -> None:
        pass

    async def hold(carrier: DirectCarrier, port: int, peer: PeerId) -> None:
        async with places:
            channel = None
            while channel is None:  # on a busy machine a handshake may be given up
                with suppress(ChannelClosed):
                    channel = Channel(await carrier.dial("127.0.0.1", port, peer))
            up.append(channel)
        with suppress(ChannelClosed):
            await channel.run(ignore)

    up: list[Channel] = []
    places = trio.CapacityLimiter(8)
    quiet_s = await victims.newcomer()
    peer, ports = victims.doors.popitem()
    async with trio.open_nursery() as nursery:
        for _ in range(CHANNELS_LIMIT // CHANNELS):
            carrier = DirectCarrier(Identity.ephemeral(), victims.swarm.local.membership.secret)
            for _ in range(CHANNELS):
                nursery.start_soon(hold, carrier, ports[-1], peer)
        with trio.fail_after(240):  # a thousand handshakes, however busy the machine is
            while len(up) < CHANNELS_LIMIT:  # noqa: ASYNC110
                await trio.sleep(0.1)
        assert await victims.newcomer() < quiet_s + LATER_S
        nursery.cancel_scope.cancel()
