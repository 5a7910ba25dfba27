"""Networks on loopback for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from shoal.net.host import Libp2pNetwork, NetworkSettings, open_network
from shoal.net.identity import Identity
from shoal.types import PeerAddress, PeerId

SECRET = b"s" * 32
OTHER_SECRET = b"o" * 32

Open = Callable[..., AbstractAsyncContextManager[Libp2pNetwork]]


def opened(secret: bytes | None = None, **settings: Any) -> AbstractAsyncContextManager[Libp2pNetwork]:
    """A network on loopback with an identity of its own."""
    identity = settings.pop("identity", None) or Identity.ephemeral()
    return open_network(NetworkSettings(identity, secret, **{"host": "127.0.0.1"} | settings))


@asynccontextmanager
async def networks(*secrets: bytes | None, **settings: Any) -> AsyncGenerator[list[Libp2pNetwork]]:
    """Several networks, not connected yet."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(opened(secret, **settings)) for secret in secrets]


def bootstrap(network: Libp2pNetwork) -> str:
    """The address to join through, as an invite has it."""
    return f"{network.address.libp2p[0]}/p2p/{network.peer}"


def only(address: PeerAddress, kind: str) -> PeerAddress:
    """The address with nothing but its ``libp2p`` or its ``direct`` part."""
    kept = {"libp2p": address.libp2p, "direct": address.direct}
    return PeerAddress(address.peer, **{kind: kept[kind]})


async def ping_once(network: Libp2pNetwork, peer: PeerId) -> None:
    """Ping; the round trip that it tells is a part of the time that the call took."""
    began = trio.current_time()
    rtt_s = await network.ping(peer, deadline_s=15)
    assert 0 < rtt_s <= trio.current_time() - began


def port_of(address: str) -> int:
    return int(address.rpartition("/")[2])


def descriptors() -> int:
    """Open files and sockets of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def tasks() -> int:
    """Living trio tasks, the system's among them."""
    return trio.lowlevel.current_statistics().tasks_living


@asynccontextmanager
async def back_to_baseline(within_s: float = 4.0) -> AsyncGenerator[None]:
    """What the block opens and starts must be gone shortly after it."""
    before = descriptors(), tasks()
    yield
    with trio.move_on_after(within_s):
        while descriptors() > before[0] or tasks() > before[1]:  # noqa: ASYNC110
            await trio.sleep(0.05)
    assert descriptors() <= before[0], "open files left behind"
    assert tasks() <= before[1], "tasks left behind"


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Generator[None]:
    """No test of the network may print: the library under it must keep what it logs to itself."""
    yield
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
