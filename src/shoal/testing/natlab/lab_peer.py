"""A peer's network on a host of a lab, in a thread of this process: with no node it costs little."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, NotAllowed, RemoteProtocolError
from shoal.net.host import Libp2pNetwork, NetworkSettings, open_network
from shoal.net.identity import Identity
from shoal.net.network import Pipe
from shoal.testing.natlab.lab import LabHost

STARTS_WITHIN_S = 30.0
JOINED_WITHIN_S = 10.0
ACKNOWLEDGED = 1 << 18
"""Bytes for which a peer sends one back."""

_Result = TypeVar("_Result")
Serve = Callable[[Libp2pNetwork], Awaitable[None]]


class LabPeer:
    """One peer. It runs while the block does.

    Args:
        secret: of the swarm.
        serve: what it does with its network, in its own loop; by default it takes every pipe that is opened
            to it and says how much of what is sent there has come.
    """

    def __init__(self, host: LabHost, secret: bytes, serve: Serve | None = None) -> None:
        self.host = host
        self.network: Libp2pNetwork
        forwarded = tuple((address, 0) for address in host.forwarded)
        self._settings = NetworkSettings(Identity.ephemeral(), secret, forwarded=forwarded, port_map=True)
        self._serve = serve or acknowledge
        self._thread = ThreadPoolExecutor(1, f"peer-{host.name}")
        self._ready = threading.Event()
        self._running: Future[None]
        self._token: trio.lowlevel.TrioToken
        self._scope: trio.CancelScope

    def __enter__(self) -> Self:
        self._running = self._thread.submit(self.host.namespace.call, partial(trio.run, self._run))
        self._running.add_done_callback(lambda _: self._ready.set())
        started = self._ready.wait(STARTS_WITHIN_S)
        if not started or self._running.done():
            if self._running.done():
                self._running.result()
            raise DeadlineExceeded(f"the peer on host {self.host.name} does not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        self._thread.shutdown()

    def end(self) -> None:
        """End it before the block does."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)
        self._running.result()

    def call(self, function: Callable[..., Awaitable[_Result]], *arguments: Any) -> _Result:
        """What an async function returns in the peer's own loop, on its host. Raises what it raises."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def join(self, others: list[LabPeer]) -> float:
        """Join a swarm through others, and wait until everybody can call this peer; the seconds that took.

        Raises:
            DeadlineExceeded: it holds no place at a relay in time.
        """
        addresses = [f"{a}/p2p/{o.network.peer}" for o in others for a in o.network.address.libp2p]
        return self.call(self._join, addresses)

    def rate(self, pipe: Pipe, size: int) -> float:
        """Bytes a second over a pipe of ours, measured with so many. Raises ChannelClosed: it broke."""
        return self.call(self._rate, pipe, size)

    async def _run(self) -> None:
        async with open_network(self._settings) as network, trio.open_nursery() as nursery:
            self.network, self._scope = network, nursery.cancel_scope
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await self._serve(network)

    async def _join(self, addresses: list[str]) -> float:
        began = trio.current_time()

        async def connect(address: str) -> None:
            # Where one IP version leads nowhere, the other does.
            with suppress(ChannelClosed, NotAllowed, DeadlineExceeded):
                await self.network.connect(address, deadline_s=JOINED_WITHIN_S)

        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(connect, address)
        with trio.move_on_after(JOINED_WITHIN_S):
            while not (self.network.reach().public or self.network.reach().relays):
                await self.network.wait_moved()
            return trio.current_time() - began
        raise DeadlineExceeded(f"host {self.host.name} has no place at a relay")

    async def _rate(self, pipe: Pipe, size: int) -> float:
        began, expected = trio.current_time(), size // ACKNOWLEDGED
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.send_all, bytes(size))
            while expected > 0:
                told = await pipe.receive_some()
                if not told:
                    raise ChannelClosed(f"{pipe.peer} hung up")
                expected -= len(told)
        return size / (trio.current_time() - began)


async def acknowledge(network: Libp2pNetwork) -> None:
    """Take pipes, and send a byte back for each ``ACKNOWLEDGED`` that come, until cancelled."""
    async with trio.open_nursery() as nursery:
        async for pipe in network.accept_pipes():
            nursery.start_soon(_acknowledge_on, pipe)


async def _acknowledge_on(pipe: Pipe) -> None:
    came = 0
    with suppress(ChannelClosed, RemoteProtocolError):
        while data := await pipe.receive_some():
            before, came = came, came + len(data)
            if told := came // ACKNOWLEDGED - before // ACKNOWLEDGED:
                await pipe.send_all(bytes(told))
    await pipe.aclose()
