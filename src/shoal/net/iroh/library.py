"""The package iroh, driven by trio. The only place that knows how its bindings wait; needs ``shoal[iroh]``.

The bindings, which uniffi writes, ask the event loop for a future and wait for it while the library in Rust
is at work. Here the future is one of trio's tasks, so that no thread is between and cancellation is trio's.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

import trio

from shoal.errors import IncompatibleLibrary

try:
    from iroh import iroh_ffi
    from iroh.iroh_ffi import (
        BiStream,
        Connection,
        Endpoint,
        EndpointAddr,
        EndpointBuilder,
        EndpointId,
        Incoming,
        IncomingAddr,
        InternalError,
        IrohError,
        RecvStream,
        RelayMode,
    )
except (ImportError, OSError) as error:  # OSError: its library in Rust does not fit this system
    raise IncompatibleLibrary(
        "the setting iroh is on, and the package iroh is not here",
        check="install the extra, or turn the setting off",
        next_command="pip install 'shoal[iroh]'",
    ) from error

__all__ = (
    "FAILURES",
    "BiStream",
    "Connection",
    "Endpoint",
    "EndpointAddr",
    "EndpointBuilder",
    "EndpointId",
    "Incoming",
    "RecvStream",
    "RelayMode",
    "came_from",
    "said",
)
FAILURES = (IrohError, InternalError)
"""What every call may raise: it did not work, or the library in Rust has a fault."""


def said(error: Exception) -> str:
    """What an error of the library says, for people."""
    return error.message() if isinstance(error, IrohError) else str(error)


async def came_from(incoming: Incoming) -> str:
    """The host that a connection comes from, or the relay: whose ids cost nothing, so they do not count."""
    at: Any = await incoming.remote_addr()
    if isinstance(at, IncomingAddr.IP):
        return at.addr.rpartition(":")[0]
    return at.url if isinstance(at, IncomingAddr.RELAY) else ""


class _Future:
    """What one trio task waits for."""

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()
        self._result: int | None = None

    def cancelled(self) -> bool:
        return False  # a task that no longer waits has left the event to nobody

    def set_result(self, result: int) -> None:
        self._result = result
        self._done.set()

    def __await__(self) -> Generator[Any, Any, int | None]:
        yield from self._done.wait().__await__()
        return self._result


class _Loop:
    """What the bindings ask of an event loop: trio's for a task of trio, else asyncio's, as ever."""

    def create_future(self) -> _Future | asyncio.Future[int]:
        try:
            return _Future()
        except RuntimeError:  # no task of trio: somebody else's use of the package in this process
            return asyncio.get_running_loop().create_future()

    def call_soon_threadsafe(self, call: Callable[..., object], future: Any, result: int) -> None:
        """Comes from a thread of the library."""
        if isinstance(future, _Future):
            with suppress(trio.RunFinishedError):
                future.token.run_sync_soon(call, future, result)
        else:
            future.get_loop().call_soon_threadsafe(call, future, result)


def _write(builder: Any, value: bytes | bytearray) -> None:
    """Copy bytes into a buffer of the library at once: the bindings do it one by one, 2 MB/s of a core."""
    buffer = builder.rbuf
    if buffer.len + len(value) > buffer.capacity:
        buffer = builder.rbuf = type(buffer).reserve(buffer, len(value))
    if value:
        ctypes.memmove(ctypes.addressof(buffer.data.contents) + buffer.len, bytes(value), len(value))
    buffer.len += len(value)


_bindings: Any = iroh_ffi
_bindings.uniffi_set_event_loop(_Loop())
_bindings._UniffiRustBufferBuilder.write = _write
