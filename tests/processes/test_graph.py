"""A graph over real node processes: the bits of the whole, also when one is killed in the midst of a
request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.models.graph.graph_store import GraphStore
from shoal.swarm import membership
from shoal.testing.graph_bits import same, whole
from shoal.testing.graphs import NamedArrays, inputs_of, write_linear, write_mlp
from shoal.types import Span

from .conftest import Processes, processes_of

pytestmark = pytest.mark.swarm
SPANS = [Span(0, 3), Span(3, 6), Span(6, 8), Span(3, 6)]
"""The middle is served twice."""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    folder = tmp_path_factory.mktemp("graph")
    with processes_of(folder, str(write_mlp(folder / "mlp.onnx")), SPANS) as found:
        yield found


def test_the_command_gives_the_bits_of_the_whole(processes: Processes, tmp_path: Path) -> None:
    inputs = inputs_of("mlp")
    said = asked(processes, inputs, tmp_path)
    assert [(stage["start"], stage["end"]) for stage in said["route"]] == [(0, 3), (3, 6), (6, 8)]
    (graph,) = GraphStore(tmp_path / "home/graphs").list()
    with np.load(tmp_path / "out.npz") as read:
        assert same(dict(read), whole(graph, inputs))


def test_the_command_has_a_linear_model_computed_on_inputs_that_nobody_sees(tmp_path: Path) -> None:
    inputs = {"features": np.random.default_rng(0).standard_normal((9, 30)).astype(np.float32)}
    file = write_linear(tmp_path / "fraud.onnx")
    with processes_of(tmp_path / "nodes", str(file), [Span(0, 1)]) as served:
        said = asked(served, inputs, tmp_path, "--encrypted")
    assert said["encrypted"]["parameters"] == "ckks-8192-60-60-60"
    assert [stage["peer"] for stage in said["route"]] == [served.local.nodes[0]["peer"]]
    (graph,) = GraphStore(tmp_path / "home/graphs").list()
    with np.load(tmp_path / "out.npz") as read:
        assert np.abs(read["scores"] - whole(graph, inputs)["scores"]).max() < 1e-3


def asked(processes: Processes, inputs: NamedArrays, folder: Path, *flags: str) -> dict[str, Any]:
    """What `shoal infer` says, in a process of its own; outputs are in `out.npz`."""
    np.savez(folder / "in.npz", **inputs)
    home = folder / "home"
    membership.save(home / "swarms", processes.local.membership)
    env = {**os.environ, "SHOAL_HOME": str(home), "SHOAL_HOST": "127.0.0.1", "SHOAL_MDNS": "0"}
    there = ["--swarm", processes.local.membership.name, "--output", "out.npz", "--json"]
    command = [sys.executable, "-m", "shoal.cli", "infer", processes.model, "--input", "in.npz", *there]
    ran = subprocess.run(
        [*command, *flags], env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout)


def test_a_node_that_is_killed_in_the_midst_of_a_request_costs_no_bit(
    processes: Processes, home: Path
) -> None:
    inputs = inputs_of("mlp", 1)
    middle = processes.local.nodes[1]
    answers: list[dict[str, Any]] = []
    with processes.connect(pin=(middle["peer"],)) as swarm:
        first = swarm.run(processes.model, inputs)
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
