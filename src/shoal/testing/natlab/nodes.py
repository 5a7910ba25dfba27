"""Real nodes on the hosts of a lab, and clients of them, each as a person would run it there."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import trio

from shoal import config, process_environ
from shoal.config import Settings
from shoal.errors import DeadlineExceeded, ShoalError, from_code
from shoal.local.processes import (
    START_WITHIN_S,
    Process,
    address_of,
    ended_with_us,
    make_home,
    start,
)
from shoal.net.addresses import EVERYWHERE
from shoal.net.identity import Identity
from shoal.swarm import membership
from shoal.testing.natlab.lab import NatLab
from shoal.types import PeerId, Span

PORT, DIRECT_PORT = 4001, 4002
"""Of public nodes, whose addresses are in the invite. Nodes elsewhere take free ports, as is the default."""
COMMAND_WITHIN_S = 90.0
SHOAL = [sys.executable, "-m", "shoal.cli"]


class NatSwarm:
    """Nodes of one swarm on hosts of a lab. Made by :func:`nat_swarm`."""

    def __init__(self, lab: NatLab, settings: Settings, folder: Path, processes: list[Process]) -> None:
        self.lab = lab
        self.nodes: dict[str, Process] = {}
        """The processes that were started last, by their host."""
        self.peers: dict[str, PeerId] = {}
        """By their host, the peers of all hosts, whether a node runs there or not."""
        self.figures: dict[str, str] = {}
        """By host, where a node that has served shows its figures: ``http://127.0.0.1:PORT`` there."""
        self._settings = settings
        self._folder = folder
        self._processes = processes
        homes = {name: folder / name for name in lab.hosts}
        self.peers = {
            name: Identity.load_or_create(home / "identity.key").peer for name, home in homes.items()
        }
        public = [
            address_of(homes[host.name], address, PORT)
            for host in lab.hosts.values()
            if host.is_public
            for address in host.addresses
        ]
        self._membership = replace(membership.create(settings.swarm), bootstrap=tuple(public))

    async def start(self, name: str, span: Span) -> Process:
        """Start a node on a host; it may take a while to serve: see :meth:`serving`."""
        host = self.lab.host(name)
        ports = (
            {"port": PORT, "direct_port": DIRECT_PORT} if host.is_public else {"port": 0, "direct_port": 0}
        )
        here = {"host": EVERYWHERE, "public_address": host.forwarded, **ports}
        own = replace(self._settings, bootstrap=self._membership.bootstrap, **here)
        home = self._folder / name
        inside = host.command([])
        process = await start(own, self._membership, span, home, self._processes, inside=inside)
        self.nodes[name] = process
        return process

    async def serving(self, *names: str) -> None:
        """Wait until the nodes on these hosts serve.

        Raises:
            ShoalError: one ended; the error is its own.
            DeadlineExceeded: it took too long.
        """
        for name in names:
            with trio.move_on_after(START_WITHIN_S) as scope:
                self.figures[name] = (await self.nodes[name].event("serving"))["figures"]
            if scope.cancelled_caught:
                raise DeadlineExceeded(f"the node on host {name} did not serve within {START_WITHIN_S:.0f} s")

    def client(self, name: str) -> tuple[list[str], dict[str, str]]:
        """How `shoal` is run on a host as a client with a home of its own: command and environment."""
        home = self._folder / f"{name}-client"
        make_home(home, self._settings.paths.models, self._membership)
        own = replace(self._settings, host=EVERYWHERE, port=0, direct_port=0)
        environ = process_environ.child_environ(**config.to_environ(own), SHOAL_HOME=str(home))
        return self.lab.host(name).command(SHOAL), environ

    async def shoal(self, name: str, *argv: str) -> dict[str, Any]:
        """What ``shoal … --json`` prints on a host.

        Raises:
            ShoalError: the command's own error.
            DeadlineExceeded: it took too long.
        """
        command, environ = self.client(name)
        with trio.move_on_after(COMMAND_WITHIN_S):
            return await run_json([*command, *argv, "--json"], environ)
        raise DeadlineExceeded(f"shoal {argv[0]} on host {name} took longer than {COMMAND_WITHIN_S:.0f} s")


async def run_json(command: list[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """The object that a command prints. Raises as :meth:`NatSwarm.shoal`."""
    ran = await trio.run_process(command, env=environ, capture_stdout=True, capture_stderr=True, check=False)
    lines = ran.stdout.decode().splitlines()
    if not lines:
        raise ShoalError(f"{command[-1]} exited with code {ran.returncode}: {ran.stderr.decode()[-500:]}")
    said = cast("dict[str, Any]", json.loads(lines[-1]))
    if error := said.get("error"):
        raise from_code(error["code"], error["message"])
    return said


@asynccontextmanager
async def nat_swarm(
    lab: NatLab, settings: Settings, folder: Path, spans: Mapping[str, Span]
) -> AsyncGenerator[NatSwarm]:
    """Start nodes on hosts, all at once, and wait until they serve. They end with the block.

    Args:
        settings: of nodes and clients; ports, addresses and homes are set here.
        folder: for the homes and logs of nodes and clients.
        spans: what each host's node serves.

    Raises:
        ShoalError: a node did not come up; the error is that node's own.
    """
    async with ended_with_us() as processes:
        swarm = NatSwarm(lab, settings, folder, processes)
        for name, span in spans.items():
            await swarm.start(name, span)
        await swarm.serving(*spans)
        yield swarm
