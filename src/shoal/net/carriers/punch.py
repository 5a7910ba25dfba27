"""Two peers that dial each other at once, each from the port that it listens on (TCP simultaneous open).

Each router sees its own peer dial first and so lets the other's connection in. The same finds a peer that can
only dial (connection reversal): then one of the two dials goes through. Who called is the initiator of the
handshake, whoever's dial it was. Both ends begin with the token that they agreed on through the relay, so no
other connection can be taken for this one; who is there, Noise proves.

py-libp2p's DCUtR takes 3 to 42 s, for it dials in rounds. Here each side dials until one of them is through:
measured between routers that map a port alike for everybody, 20 of 20 in 53 ms.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from shoal.errors import ChannelClosed
from shoal.net.addresses import host_and_port
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.reach.openings import read_token, send_token
from shoal.net.reach.ports import NO_ROUTE, TAKEN, dial_from, dial_only_from, end_for, leave_no_trace

MEET_WITHIN_S = 3.0
DIAL_S = 1.0
"""How long one dial waits: the system repeats its first packet after a second, we dial again at once."""
AGAIN_S = 0.05
"""Between two dials: a router may have refused the first, which came before its own peer's."""
ARRIVES_S = 0.3
ADDRESSES_LIMIT = 4
DIALS_LIMIT = 20
"""Dials of one meeting, to all addresses: what who names a wrong one can cause there."""

Establish = Callable[[trio.SocketStream], Awaitable[DirectPipe]]
"""The handshake over a connection, in our role. It owns the connection."""


class Meeting:
    """One attempt to meet a peer.

    Args:
        ends: where we dial from: the addresses that we listen on, one of each IP version.
        establish: the handshake.
        one_at_a_time: as the initiator; so that both ends keep the same one of two connections.
        open_door: the peer lets everybody in, so that it may be dialled from any port: where we hold a place
            with it, a connection between the same ports exists already.
    """

    def __init__(
        self,
        ends: Sequence[tuple[str, int]],
        token: bytes,
        establish: Establish,
        *,
        one_at_a_time: bool,
        open_door: bool = False,
    ) -> None:
        self._open_door = open_door
        self._ends = ends
        self._token = token
        self._establish = establish
        self._turns = trio.CapacityLimiter(1 if one_at_a_time else ADDRESSES_LIMIT + 4)
        self._dials_left = DIALS_LIMIT
        self._taken = 0
        """Addresses to which we have a connection already."""
        self._greeted = False
        self._won: DirectPipe | None = None
        self._scope = trio.CancelScope()

    async def meet(
        self, addresses: Sequence[str], arrivals: trio.MemoryReceiveChannel[trio.SocketStream]
    ) -> DirectPipe:
        """The pipe of the first connection that comes about.

        Args:
            addresses: where the peer is seen.
            arrivals: connections to our port that began with the token, which was read.

        Raises:
            ChannelClosed: none came about in time.
        """
        targets = [
            (*target, end)
            for address in addresses[:ADDRESSES_LIMIT]
            if (target := host_and_port(address)) and (end := end_for(self._ends, target[0]))
        ]
        self._scope.deadline = trio.current_time() + MEET_WITHIN_S
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._accept, arrivals, nursery)
                    async with trio.open_nursery() as dials:
                        for host, port, end in targets:
                            dials.start_soon(self._dial, host, port, end)
                    # A connection between the same ports exists. It may be the peer's, which was faster and
                    # comes now; an older one lets none through, so there is nothing to wait for.
                    if targets and self._taken == len(targets):
                        await trio.sleep(ARRIVES_S)
                        if not self._greeted:
                            self._scope.cancel()
        except BaseException:
            if self._won is not None:  # the caller was cancelled in the moment of success
                await self._won.aclose()
            raise
        if self._won is None:
            raise ChannelClosed("the routers between let no connection through")
        return self._won

    async def _accept(
        self, arrivals: trio.MemoryReceiveChannel[trio.SocketStream], nursery: trio.Nursery
    ) -> None:
        async for stream in arrivals:
            nursery.start_soon(self._greet, stream, False)

    async def _dial(self, host: str, port: int, end: tuple[str, int]) -> None:
        while self._dials_left:
            self._dials_left -= 1
            try:
                with trio.fail_after(DIAL_S):
                    stream = await (dial_from if self._open_door else dial_only_from)(end, host, port)
            except (OSError, trio.TooSlowError) as error:
                if isinstance(error, OSError) and error.errno in TAKEN:
                    self._taken += 1
                    return
                if isinstance(error, OSError) and error.errno in NO_ROUTE:
                    return
                await trio.sleep(AGAIN_S)
                continue
            await self._greet(stream, True)
            return

    async def _greet(self, stream: trio.SocketStream, dialled: bool) -> None:
        """Show the token, see the peer's if it was not seen, and shake hands when it is our turn."""
        self._greeted = True
        try:
            leave_no_trace(stream.socket)
            await send_token(stream, self._token)
            if dialled and await read_token(stream) != self._token:
                raise ChannelClosed("another connection than the one that was agreed on")
            async with self._turns:
                pipe = await self._establish(stream)
        except (ChannelClosed, OSError):
            await trio.aclose_forcefully(stream)
            return
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if self._won is not None:
            await pipe.aclose()
            return
        pipe.traceless = True
        self._won = pipe
        self._scope.cancel()
