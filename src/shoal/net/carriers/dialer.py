"""Chooses the carrier by what works: direct addresses first, side by side, then a libp2p stream."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from shoal.errors import ChannelClosed, NotAllowed
from shoal.net.addresses import host_and_port
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.happy_eyeballs import first
from shoal.net.network import Pipe
from shoal.tasks import seconds_left
from shoal.types import PeerAddress, PeerId

DIRECT_SHARE = 0.4
"""Share of the deadline after which the libp2p stream is tried."""
ADDRESSES_LIMIT = 8
CHEAP_S = 0.5
"""A failure that came sooner is not remembered: to try again costs nothing, and the peer may be back."""
FORGET_FAILURE_S = 60.0
FAILURES_KEPT = 1024

OpenStream = Callable[[PeerAddress, float], Awaitable[Pipe]]


class Dialer:
    """Opens pipes, and remembers for a while to whom the direct carrier waited in vain."""

    def __init__(self, direct: DirectCarrier | None, open_stream: OpenStream) -> None:
        self._direct = direct
        self._open_stream = open_stream
        self._failed: OrderedDict[tuple[PeerId, tuple[str, ...]], float] = OrderedDict()
        """When we waited in vain for a peer at these addresses; at others it is tried again at once."""

    async def open(self, address: PeerAddress, deadline_s: float) -> Pipe:
        """A pipe to the peer.

        Raises:
            ChannelClosed: neither carrier got through in time.
            NotAllowed: the peer refuses us.
        """
        start = trio.current_time()
        until = start + deadline_s
        if self._direct is not None and address.direct and not self._failed_lately(address):
            with trio.move_on_after(deadline_s * DIRECT_SHARE):
                try:
                    return await self._race(self._direct, address)
                except (ChannelClosed, NotAllowed):
                    pass  # the libp2p stream is tried next, and says what is wrong if it fails too
            if trio.current_time() - start > CHEAP_S:
                self._remember(address)
        left = seconds_left(until)
        with trio.move_on_after(left):
            return await self._open_stream(address, left)
        raise ChannelClosed(f"{address.peer} did not answer within {deadline_s:.0f} s")

    async def _race(self, direct: DirectCarrier, address: PeerAddress) -> DirectPipe:
        targets = filter(None, map(host_and_port, address.direct[:ADDRESSES_LIMIT]))
        attempts = [partial(direct.dial, host, port, address.peer) for host, port in targets]
        return await first(attempts, DirectPipe.aclose)

    def _failed_lately(self, address: PeerAddress) -> bool:
        failed = self._failed.get((address.peer, address.direct), -FORGET_FAILURE_S)
        return trio.current_time() - failed < FORGET_FAILURE_S

    def _remember(self, address: PeerAddress) -> None:
        self._failed[address.peer, address.direct] = trio.current_time()
        while len(self._failed) > FAILURES_KEPT:
            self._failed.popitem(last=False)
