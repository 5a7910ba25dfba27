"""Chooses the carrier by what works: direct addresses first, side by side, then a libp2p stream."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from shoal.errors import ChannelClosed
from shoal.net.addresses import host_and_port
from shoal.net.direct import DirectCarrier, DirectPipe
from shoal.net.network import Pipe
from shoal.types import PeerAddress, PeerId

STAGGER_S = 0.25
"""Between two direct dials to one peer (RFC 8305, section 8)."""
DIRECT_SHARE = 0.4
"""Share of the deadline after which the libp2p stream is tried."""
FORGET_FAILURE_S = 60.0
FAILURES_KEPT = 1024

OpenStream = Callable[[PeerAddress, float], Awaitable[Pipe]]


class Dialer:
    """Opens pipes, and remembers for a while to whom the direct carrier did not get through."""

    def __init__(self, direct: DirectCarrier | None, open_stream: OpenStream) -> None:
        self._direct = direct
        self._open_stream = open_stream
        self._failed: OrderedDict[PeerId, float] = OrderedDict()

    async def open(self, address: PeerAddress, deadline_s: float) -> Pipe:
        """A pipe to the peer.

        Raises:
            ChannelClosed: neither carrier got through in time.
            NotAllowed: the peer refuses us.
        """
        until = trio.current_time() + deadline_s
        if self._direct is not None and address.direct and not self._failed_lately(address.peer):
            with trio.move_on_after(deadline_s * DIRECT_SHARE):
                pipe = await self._race(self._direct, address)
                if pipe is not None:
                    self._failed.pop(address.peer, None)
                    return pipe
            self._remember(address.peer)
        left = until - trio.current_time()
        with trio.move_on_after(left):
            return await self._open_stream(address, left)
        raise ChannelClosed(f"{address.peer} did not answer within {deadline_s:.0f} s")

    async def _race(self, direct: DirectCarrier, address: PeerAddress) -> DirectPipe | None:
        """The first of the direct addresses that answers; the other dials are given up."""
        winners: list[DirectPipe] = []

        async def dial(host: str, port: int, delay_s: float, scope: trio.CancelScope) -> None:
            await trio.sleep(delay_s)
            try:
                pipe = await direct.dial(host, port, address.peer)
            except ChannelClosed:
                return
            if winners:
                await pipe.aclose()
                return
            winners.append(pipe)
            scope.cancel()

        async with trio.open_nursery() as nursery:
            for index, multiaddr in enumerate(address.direct[:8]):
                target = host_and_port(multiaddr)
                if target is not None:
                    nursery.start_soon(dial, *target, index * STAGGER_S, nursery.cancel_scope)
        return winners[0] if winners else None

    def _failed_lately(self, peer: PeerId) -> bool:
        return trio.current_time() - self._failed.get(peer, -FORGET_FAILURE_S) < FORGET_FAILURE_S

    def _remember(self, peer: PeerId) -> None:
        self._failed[peer] = trio.current_time()
        while len(self._failed) > FAILURES_KEPT:
            self._failed.popitem(last=False)
