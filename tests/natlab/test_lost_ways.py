"""A channel between two homes goes on when routers forget it, its relay dies, or its network is gone."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import trio

from shoal.errors import ChannelClosed
from shoal.net.channel import Channel
from shoal.net.host import Libp2pNetwork
from shoal.net.pool import ChannelPool
from shoal.testing.natlab.lab import NatLab
from shoal.testing.natlab.lab_peer import LabPeer
from shoal.testing.natlab.sites import LinkQuality, parse_sites
from shoal.types import PeerAddress, PeerId
from shoal.wire.messages import Close, Message

pytestmark = [pytest.mark.swarm, pytest.mark.alone]
EVERY_S = 0.05
OFFLINE_S = 2.5
"""Less than a channel lives without a word; answers outlive more (``test_ways.py``)."""
GOES_ON_WITHIN_S = 20.0
"""On a busy machine too; a quiet one takes less than three seconds."""


class Line:
    """Numbered messages from one peer to another over one channel."""

    def __init__(self) -> None:
        self.addresses: dict[PeerId, Callable[[], PeerAddress]] = {}
        self.came: list[int] = []
        self.waits_s: list[float] = []
        """How long each wait of :meth:`goes_on` took."""
        self.closed: list[str] = []
        self.channel: Channel | None = None
        self.sent = 0

    def pool(self, network: Libp2pNetwork) -> ChannelPool:
        return ChannelPool(network, self._take, lambda _, why: self.closed.append(why), where=self._where)

    async def accept(self, network: Libp2pNetwork) -> None:
        await self.pool(network).run(accept=True)

    async def send(self, network: Libp2pNetwork) -> None:
        """Send a message every ``EVERY_S`` to the other peer, once its address is known."""
        pool = self.pool(network)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(pool.run, accept=True))
            while not self.addresses:  # noqa: ASYNC110  another thread says it
                await trio.sleep(EVERY_S)
            (address,) = (where() for where in self.addresses.values())
            self.channel = await pool.get(address, deadline_s=10)
            while True:
                try:
                    self.channel.send_now(Close(self.sent.to_bytes(16, "big")))
                    self.sent += 1
                except ChannelClosed:
                    return
                await trio.sleep(EVERY_S)

    async def _take(self, _: Channel, message: Message, __: bytes) -> None:
        assert isinstance(message, Close)
        self.came.append(int.from_bytes(message.session, "big"))

    def _where(self, peer: PeerId) -> PeerAddress | None:
        return self.addresses[peer]() if peer in self.addresses else None

    def goes_on(self) -> None:
        """Wait until a message that is sent from now on has come."""
        first, began = self.sent, time.monotonic()
        while not (self.came and self.came[-1] > first):
            assert time.monotonic() - began < GOES_ON_WITHIN_S, f"{self.came[-1:]} came last; {self.closed}"
            time.sleep(0.01)
        self.waits_s.append(time.monotonic() - began)


@contextmanager
def line(lab: NatLab, source: str, destination: str) -> Generator[tuple[Line, dict[str, LabPeer]]]:
    """Messages from the peer on one host to that on another; the hosts "a" and "b" are public."""
    secret, made = secrets.token_bytes(32), Line()
    serving = {source: made.send, destination: made.accept}
    with ExitStack() as running:
        peers = {
            name: running.enter_context(LabPeer(lab.host(name), secret, serving.get(name)))
            for name in ("a", "b", source, destination)
        }
        for name in (source, destination):
            peers[name].join([peers["a"], peers["b"]])
        other = peers[destination].network
        until = time.monotonic() + 10
        while len(other.reach().relays) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        made.addresses[other.peer] = lambda: other.address
        made.goes_on()
        yield made, peers
        print(source, destination, *(f"{wait_s:.2f} s" for wait_s in made.waits_s[1:]))
        assert made.came == list(range(len(made.came)))
        # A dial that was begun anew may come through all the same, and is hung up; the channel is not.
        assert made.channel is not None and not made.channel.closed, made.closed


@pytest.fixture(scope="module")
def homes(nat_lab: type[NatLab]) -> Iterator[NatLab]:
    with nat_lab(parse_sites("public,public,cone,cone,sym,sym", LinkQuality(delay_ms=5))) as made:
        yield made


@pytest.mark.parametrize(("source", "destination"), [("c", "d"), ("e", "f")], ids=["punched", "relayed"])
def test_a_router_that_forgets_everything_holds_up_a_channel_and_loses_nothing(
    homes: NatLab, source: str, destination: str
) -> None:
    with line(homes, source, destination) as (made, _):
        for forgetful in (source, destination):
            homes.drop_mappings(forgetful)
            made.goes_on()
            time.sleep(1)
        assert made.channel
        assert made.channel.moves >= 2


def test_a_relay_that_dies_is_replaced_by_another_under_a_channel(homes: NatLab) -> None:
    with line(homes, "e", "f") as (made, peers):
        assert made.channel
        assert made.channel.way == "relayed"
        (relay,) = (name for name in "ab" if peers[name].network.relay.circuits)
        peers[relay].end()
        made.goes_on()
        assert made.channel.way == "relayed"
        assert made.channel.moves == 1


def test_a_network_that_is_gone_for_a_while_loses_nothing(homes: NatLab) -> None:
    with line(homes, "c", "d") as (made, _):
        homes.offline("c", OFFLINE_S)
        time.sleep(OFFLINE_S)
        made.goes_on()
