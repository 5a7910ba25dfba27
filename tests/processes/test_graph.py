"""A graph over real node processes: the bits of the whole, also when one is killed in the midst of a
request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyio.from_thread import start_blocking_portal

import shoal
from shoal import config
from shoal.local.processes import address_of, ended_with_us, free_ports, on_this_machine, start
from shoal.models.graph.graph_store import GraphStore
from shoal.swarm import membership
from shoal.swarm.invite import write_invite
from shoal.swarm.membership import Membership
from shoal.testing.graph_bits import same, whole
from shoal.testing.graphs import inputs_of, write_mlp
from shoal.types import Span

pytestmark = pytest.mark.swarm
SPANS = [Span(0, 3), Span(3, 6), Span(6, 8), Span(3, 6)]
"""The middle is served twice."""


@dataclass
class GraphProcesses:
    """Four nodes that serve a graph, and its file."""

    membership: Membership
    nodes: list[dict[str, Any]]
    file: Path

    @property
    def invite(self) -> str:
        return write_invite(self.membership)


@asynccontextmanager
async def booted(folder: Path, file: Path) -> AsyncGenerator[GraphProcesses]:
    wanted = {"model": str(file), "mdns": False}
    inside = on_this_machine(config.load(wanted, {"SHOAL_HOME": str(folder)}), "demo")
    swarm = membership.create(inside.swarm)
    homes = [folder / str(number) for number in range(len(SPANS))]
    ports = free_ports(inside.host, len(SPANS))
    addresses = [address_of(home, inside.host, port) for home, port in zip(homes, ports, strict=True)]
    async with ended_with_us() as processes:
        for span, home, port in zip(SPANS, homes, ports, strict=True):
            own = replace(inside, port=port, bootstrap=tuple(addresses))
            await start(own, swarm, span, home, processes)
        nodes = [await process.event("serving") for process in processes]
        yield GraphProcesses(replace(swarm, bootstrap=tuple(addresses)), nodes, file)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphProcesses]:
    folder = tmp_path_factory.mktemp("graph")
    file = write_mlp(folder / "mlp.onnx")
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(booted(folder, file)) as found,
    ):
        yield found


def test_the_command_gives_the_bits_of_the_whole(processes: GraphProcesses, tmp_path: Path) -> None:
    inputs = inputs_of("mlp")
    np.savez(tmp_path / "in.npz", **inputs)
    home = tmp_path / "home"
    membership.save(home / "swarms", processes.membership)
    env = {**os.environ, "SHOAL_HOME": str(home), "SHOAL_HOST": "127.0.0.1", "SHOAL_MDNS": "0"}
    flags = ["--swarm", processes.membership.name, "--output", "out.npz", "--json"]
    command = [sys.executable, "-m", "shoal.cli", "infer", str(processes.file), "--input", "in.npz", *flags]
    ran = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = json.loads(ran.stdout)
    assert [(stage["start"], stage["end"]) for stage in said["route"]] == [(0, 3), (3, 6), (6, 8)]
    (graph,) = GraphStore(home / "graphs").list()
    with np.load(tmp_path / "out.npz") as read:
        assert same(dict(read), whole(graph, inputs))


def test_a_node_that_is_killed_in_the_midst_of_a_request_costs_no_bit(
    processes: GraphProcesses, home: Path
) -> None:
    inputs = inputs_of("mlp", 1)
    middle = processes.nodes[1]
    answers: list[dict[str, Any]] = []
    with shoal.connect(invite=processes.invite, host="127.0.0.1", mdns=False, pin=(middle["peer"],)) as swarm:
        first = swarm.run(str(processes.file), inputs)
        asker = threading.Thread(target=lambda: answers.append(swarm.run("mlp", inputs)))
        os.kill(middle["pid"], signal.SIGSTOP)  # it has the request, and does not answer
        asker.start()
        asking = threading.Event()
        while middle["peer"] not in swarm.portal.call(swarm.swarm.graphs.asking):
            assert asker.is_alive()
            asking.wait(0.01)
        os.kill(middle["pid"], signal.SIGKILL)
        asker.join(60)
    (graph,) = GraphStore(home / "graphs").list()
    assert same(first, whole(graph, inputs))
    assert [same(answer, first) for answer in answers] == [True]
