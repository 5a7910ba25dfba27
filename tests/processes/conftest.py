"""Real node processes on this machine, and a client of each kind beside them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

import shoal
from shoal import config
from shoal.local.processes import LocalSwarm, local_swarm
from shoal.swarm import membership
from shoal.swarm.invite import write_invite
from shoal.testing.checkpoints import write_checkpoint


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
        """A client of them, with a home of its own."""
        return shoal.connect(invite=self.invite, host="127.0.0.1", mdns=False, **options)


@contextmanager
def processes(home: Path, model: str, n_blocks: int, nodes: int = 3, **options):
    """Boot nodes, in float32 to be compared with the whole model, and end them with the block."""
    wanted = {"model": model, "mdns": False, "threads": 1, "format": "fp32"} | options
    settings = config.load(wanted, {"SHOAL_HOME": str(home)})
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(local_swarm(settings, n_blocks, nodes)) as local,
    ):
        yield Processes(local, home, model)


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
def swarm(home, checkpoint):
    """One for all tests that harm no node."""
    with processes(home, str(checkpoint), 6) as booted:
        membership.save(home / "swarms", booted.local.membership)
        yield booted
