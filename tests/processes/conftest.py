"""Real node processes on this machine, and a client of each kind beside them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from anyio.from_thread import start_blocking_portal

import shoal
from shoal import config
from shoal.config import Settings
from shoal.local.processes import (
    LocalSwarm,
    address_of,
    ended_with_us,
    free_ports,
    local_swarm,
    on_this_machine,
    start,
)
from shoal.net.identity import Identity
from shoal.swarm import membership
from shoal.swarm.announcement import Announcement, operator_of
from shoal.swarm.invite import write_invite
from shoal.testing.checkpoints import write_checkpoint
from shoal.trust.operator import OperatorFile, state
from shoal.types import Span
from tests.one_process import FORMAT, OneProcess

OPERATOR = Identity.from_seed(bytes(32))
"""Whose the nodes are that :func:`processes_of` boots."""


@dataclass
class Processes:
    """Three nodes that serve one model between them."""

    local: LocalSwarm
    home: Path
    model: str

    @property
    def invite(self) -> str:
        return write_invite(self.local.membership)

    def connect(self, **options) -> shoal.Connection:
        """A client of them, with a home of its own, that has nothing rounded on the way."""
        options = {"wire": "float32"} | options
        return shoal.connect(invite=self.invite, host="127.0.0.1", mdns=False, **options)


@contextmanager
def processes(home: Path, model: str, n_blocks: int, nodes: int = 3, **options):
    """Boot nodes, and end them with the block."""
    wanted = {"model": model, "mdns": False, "threads": 1, "format": FORMAT} | options
    settings = config.load(wanted, {"SHOAL_HOME": str(home)})
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(local_swarm(settings, n_blocks, nodes)) as local,
    ):
        yield Processes(local, home, model)


@contextmanager
def processes_of(home: Path, model: str, spans: Sequence[Span], **options):
    """Boot a node for each span, of which several may be the same, and end them with the block."""
    wanted = {"model": model, "mdns": False, "threads": 1} | options
    settings = config.load(wanted, {"SHOAL_HOME": str(home)})
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(_booted(settings, spans)) as local,
    ):
        yield Processes(local, home, model)


def write_statement(home: Path) -> Path:
    """A file with :data:`OPERATOR`'s statement about the machine that has this home."""
    peer, file = Identity.load(home / "identity.key").peer, home / "operator.json"
    statement = state(OPERATOR.peer, peer, time.time(), 1, OPERATOR.sign)
    file.write_bytes(OperatorFile.of(peer, statement).encoded())
    return file


def operators(announcements: Iterable[Announcement]) -> set[str]:
    """Whose machines peers are, as they announce."""
    return {said.operator if (said := operator_of(one)) else "" for one in announcements}


@asynccontextmanager
async def _booted(settings: Settings, spans: Sequence[Span]) -> AsyncGenerator[LocalSwarm]:
    inside = on_this_machine(settings, "demo")
    swarm = membership.create(inside.swarm)
    with TemporaryDirectory(prefix="shoal-") as folder:
        homes = [Path(folder, str(number)) for number in range(len(spans))]
        ports = free_ports(inside.host, len(spans))
        addresses = [address_of(home, inside.host, port) for home, port in zip(homes, ports, strict=True)]
        async with ended_with_us() as processes:
            for span, home, port in zip(spans, homes, ports, strict=True):
                statement = str(write_statement(home))
                own = replace(inside, port=port, bootstrap=tuple(addresses), operator=statement)
                await start(own, swarm, span, home, processes)
            nodes = [await process.event("serving") for process in processes]
            yield LocalSwarm(inside, replace(swarm, bootstrap=tuple(addresses)), tuple(nodes))


@pytest.fixture(scope="package")
def home(tmp_path_factory):
    """A home for all these clients, which `shoal.connect` finds too."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_HOME", str(folder))
        yield folder


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "llama")


@pytest.fixture(scope="package")
def one_process(home, checkpoint):
    """The model of :func:`swarm` in this process."""
    return OneProcess(home, checkpoint)


@pytest.fixture(scope="package")
def swarm(home, checkpoint):
    """One for all tests that harm no node."""
    with processes(home, str(checkpoint), 6, iroh=True) as booted:
        membership.save(home / "swarms", booted.local.membership)
        yield booted
