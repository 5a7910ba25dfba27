"""A swarm of node processes on this machine, for the demo and the benchmarks. Nothing of it stays behind."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import trio

from shoal import config, process_environ
from shoal.config import Settings
from shoal.errors import DeadlineExceeded, OutOfResources, ShoalError, UsageError, from_code
from shoal.local.ending import stop_signals
from shoal.net.addresses import to_multiaddr
from shoal.net.identity import Identity
from shoal.swarm import membership
from shoal.swarm.join import INVITED
from shoal.swarm.membership import Membership
from shoal.types import Span

if TYPE_CHECKING:
    from shoal.client.swarm import Swarm

PORTS = range(20_000, 32_000)
"""Below those that systems give to outgoing connections: a node that comes back finds its own free."""
START_WITHIN_S = 180.0
END_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class LocalSwarm:
    """What a client needs to be in it."""

    settings: Settings
    membership: Membership
    nodes: tuple[dict[str, Any], ...]
    """What each node said when it began to serve: ``peer``, ``start``, ``end``, ``pid``, ``addresses`` …"""


@dataclass(frozen=True, slots=True)
class StartingSwarm:
    """Nodes that were started and do not serve yet. Raises in both waits as :func:`local_swarm`."""

    settings: Settings
    membership: Membership
    processes: tuple[Process, ...]

    async def listening(self) -> None:
        """Wait until all of them can be dialled."""
        await self._all("listening")

    async def serving(self) -> LocalSwarm:
        """Wait until all of them serve."""
        return LocalSwarm(self.settings, self.membership, tuple(await self._all("serving")))

    async def _all(self, event: str) -> list[dict[str, Any]]:
        with trio.move_on_after(START_WITHIN_S):
            return [await process.event(event) for process in self.processes]
        raise DeadlineExceeded(f"the nodes did not start within {START_WITHIN_S:.0f} s")


def enter_local_swarm(local: LocalSwarm | StartingSwarm) -> AbstractAsyncContextManager[Swarm]:
    """The local swarm, as a client."""
    from shoal.client.connect import open_swarm  # noqa: PLC0415 - the nodes are started before we import it

    return open_swarm(replace(local.settings, bootstrap=local.membership.bootstrap), local.membership)


def split(n_blocks: int, nodes: int) -> list[Span]:
    """The blocks of a model in ``nodes`` spans, as even as can be.

    Raises:
        UsageError: there are more nodes than blocks.
    """
    if not 0 < nodes <= n_blocks:
        raise UsageError(f"{n_blocks} blocks cannot be split among {nodes} nodes", check="lower --nodes")
    edges = [n_blocks * i // nodes for i in range(nodes + 1)]
    return [Span(start, end) for start, end in pairwise(edges)]


@asynccontextmanager
async def local_swarm(settings: Settings, n_blocks: int, nodes: int) -> AsyncGenerator[LocalSwarm]:
    """Start ``nodes`` processes that serve ``settings.model`` between them; end them with the block.

    Raises:
        UsageError: more nodes than blocks.
        ShoalError: a node did not come up; the error is that node's own.
    """
    async with starting_swarm(settings, n_blocks, nodes) as starting:
        yield await starting.serving()


@asynccontextmanager
async def starting_swarm(
    settings: Settings, n_blocks: int, nodes: int, *, cache: Path | None = None
) -> AsyncGenerator[StartingSwarm]:
    """As :func:`local_swarm`, but the block begins at once, and waits for the nodes itself.

    Args:
        cache: where nodes keep packed weights; by default each has its own, which ends with it.
    """
    spans = split(n_blocks, nodes)
    inside = on_this_machine(settings, "demo")
    swarm = membership.create(inside.swarm)
    with TemporaryDirectory(prefix="shoal-") as folder:
        homes = [Path(folder, str(number)) for number in range(nodes)]
        ports = free_ports(inside.host, nodes)
        addresses = [address_of(home, inside.host, port) for home, port in zip(homes, ports, strict=True)]
        async with ended_with_us() as processes:
            for span, home, port, address in zip(spans, homes, ports, addresses, strict=True):
                # Each dials all others: of each two, the one that listens later finds the other.
                others = tuple(other for other in addresses if other != address)
                if cache is not None:
                    share(home / "cache", cache)
                own = replace(inside, port=port, bootstrap=others)
                await start(own, swarm, span, home, processes)
            reached = replace(swarm, bootstrap=tuple(addresses[:INVITED]))
            yield StartingSwarm(inside, reached, tuple(processes))


def address_of(home: Path, host: str, port: int) -> str:
    """The multiaddr of a node that is to run in ``home``, whose identity is made for that."""
    return f"{to_multiaddr(host, port)}/p2p/{Identity.load_or_create(home / 'identity.key').peer}"


def free_ports(host: str, count: int) -> list[int]:
    """TCP ports that nobody listens on now, and that no outgoing connection is given.

    Raises:
        OutOfResources: there are not so many.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as opened, suppress(OSError):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((host, port))
            found.append(port)
        if len(found) == count:
            return found
    raise OutOfResources(f"{host} has no {count} free ports among {PORTS.start} to {PORTS.stop}")


def on_this_machine(settings: Settings, swarm: str) -> Settings:
    """The settings of a node or client of a swarm that nobody outside of this machine is to see."""
    alone = {"host": "127.0.0.1", "mdns": False, "bootstrap": ()}
    return replace(settings, swarm=swarm, port=0, direct_port=0, metrics_port=0, **alone)


@asynccontextmanager
async def ended_with_us() -> AsyncGenerator[list[Process]]:
    """A list of processes. Those in it end with the block, and when a signal ends us."""
    processes: list[Process] = []
    try:
        async with trio.open_nursery() as nursery:
            # Ended by a signal, we must not leave the nodes behind. Only the main thread hears of any.
            if threading.current_thread() is threading.main_thread():
                nursery.start_soon(_end_when_asked)
            yield processes
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await end(processes)


class Process:
    """One `shoal serve --json`, and what it says."""

    def __init__(self, process: trio.Process, log: Path) -> None:
        self.process = process
        self._log = log
        self._buffer = b""

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the node and all that computes with it; none to one that has ended."""
        if not self.ended:
            with suppress(ProcessLookupError):
                # Asked to end, a node ends its own processes, when their work is done.
                (os.kill if number == signal.SIGTERM else os.killpg)(self.process.pid, number)

    def last_words(self) -> str:
        """The end of what it wrote on stderr."""
        return self._log.read_text("utf-8", errors="replace").strip()[-500:]

    async def event(self, name: str) -> dict[str, Any]:
        """The next event of that name.

        Raises:
            ShoalError: the process ended, or said what went wrong.
        """
        while True:
            line = await self._line()
            said = cast("dict[str, Any]", json.loads(line))
            if "error" in said:
                error = from_code(said["error"]["code"], said["error"]["message"])
                error.check, error.next_command = said["error"]["check"], said["error"]["next_command"]
                raise error
            if said.get("event") == name:
                return said

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            piece = await self.process.stdout.receive_some()
            if not piece:
                code = await self.process.wait()
                raise ShoalError(f"a node exited with code {code}: {self.last_words() or 'no output'}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


async def start(
    settings: Settings,
    swarm: Membership,
    span: Span,
    home: Path,
    processes: list[Process],
    *,
    inside: Sequence[str] = (),
) -> Process:
    """Start a node and add it to ``processes``.

    Args:
        settings: as :func:`on_this_machine` makes them, with ports and more if wanted.
        home: the node's own, and so its identity and packed weights; made if it is not there. The models are
            those of this machine.
        inside: a command that becomes the one that follows it, as `nsenter` does, to run the node by.
    """
    make_home(home, settings.paths.models, swarm)
    what = ["serve", settings.model, "--span", str(span), "--end-with-stdin", "--json"]
    return await spawn(["shoal.cli", *what], settings, home, processes, inside=inside)


async def spawn(
    module: Sequence[str],
    settings: Settings,
    home: Path,
    processes: list[Process],
    *,
    inside: Sequence[str] = (),
) -> Process:
    """Start a module of ours, which says what it does in lines of JSON, and add it to ``processes``.

    Args:
        module: its name, and its arguments.
        home: its own; what it writes on stderr is in its file ``log``.
        inside: as of :func:`start`.
    """
    log = home / "log"
    with log.open("ab") as stderr:
        process = await trio.lowlevel.open_process(
            [*inside, sys.executable, "-m", *module],
            stdin=subprocess.PIPE,  # when we end, however that is, so does the node
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=process_environ.child_environ(**config.to_environ(settings), SHOAL_HOME=str(home)),
            # Ctrl-C is for us, and we end them in order. In a group of our session, not in a session of its
            # own: then the kernel wakes one that is frozen when we are killed (POSIX, orphaned groups).
            process_group=0,
        )
    processes.append(Process(process, log))
    return processes[-1]


def make_home(home: Path, models: Path, swarm: Membership) -> None:
    """A folder for a process of its own: a member of the swarm, with the models of this machine."""
    share(home / "models", models)
    membership.save(home / "swarms", swarm)


def share(link: Path, folder: Path) -> None:
    """Let ``link`` lead to ``folder``, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(folder.resolve())


async def end(processes: list[Process]) -> None:
    """Ask processes to end, and end those that do not."""
    for running in processes:
        running.signal(signal.SIGTERM)
        running.signal(signal.SIGCONT)  # one that is frozen hears nothing else
    with trio.move_on_after(END_WITHIN_S):
        for running in processes:
            await running.process.wait()
    for running in processes:
        running.signal(signal.SIGKILL)
        await running.process.wait()


async def _end_when_asked() -> None:
    asking = [number for number in stop_signals() if number != signal.SIGINT]  # that one trio raises itself
    with trio.open_signal_receiver(*asking) as signals:
        await anext(signals)
        raise KeyboardInterrupt
