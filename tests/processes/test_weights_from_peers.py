"""One machine has the model, two have nothing, nor has the client: weights and adapters come from peers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from shoal import config, process_environ
from shoal.client.connect import open_swarm
from shoal.client.swarm import Swarm
from shoal.config import Paths
from shoal.local.processes import (
    Process,
    address_of,
    ended_with_us,
    enter_local_swarm,
    free_ports,
    local_swarm,
    on_this_machine,
    start,
)
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.parts import missing_parts
from shoal.models.graph.graph_store import GraphStore
from shoal.models.graph.items import missing_graph_items, span_items
from shoal.models.store.store import ModelStore
from shoal.swarm import membership
from shoal.testing.adapters import write_adapter
from shoal.testing.graphs import write_mlp
from shoal.types import Span
from tests.one_process import FORMAT

pytestmark = pytest.mark.swarm
PROMPT = list(range(5, 25))


def home_of(folder: Path) -> Paths:
    return Paths(folder, folder, folder / "cache")


def here_of(folder: Path) -> set[str]:
    """The tensors of a model that have come."""
    tensors = open_checkpoint(folder).tensors
    return {name for name, entry in tensors.items() if not missing_parts([entry])}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "pirate", checkpoint, ["q_proj", "down_proj"], rank=16)


async def answers(client: Swarm, model: str) -> list[tuple[int, ...]]:
    """What a model answers, and what it does with the adapter."""
    found: list[tuple[int, ...]] = []
    for name in (model, f"{model}:pirate"):
        answer = client.generate(name, PROMPT, max_tokens=8)
        async for _ in answer:
            pass
        found.append(tuple(answer.token_ids))
    return found


@pytest.fixture
async def expected(checkpoint: Path, adapter: Path, tmp_path: Path) -> list[tuple[int, ...]]:
    """What a node that has the whole model answers, and with the adapter."""
    wanted = {"model": str(checkpoint), "threads": 1, "format": FORMAT, "adapter": (str(adapter),)}
    settings = config.load(wanted, {"SHOAL_HOME": str(tmp_path / "whole")})
    async with local_swarm(settings, 6, 1) as local, enter_local_swarm(local) as client:
        found = await answers(client, str(checkpoint))
    assert found[0] != found[1]
    return found


@asynccontextmanager
async def one_and_two(
    checkpoint: Path, adapter: Path, folder: Path
) -> AsyncGenerator[tuple[list[Process], list[dict[str, Any]], Any]]:
    """Three nodes, of which the first alone has the model, and the adapter's folder; what they said as they
    began; their swarm."""
    wanted = {"model": str(checkpoint), "threads": 1, "format": FORMAT}
    settings = on_this_machine(config.load(wanted, {"SHOAL_HOME": str(folder)}), "home")
    swarm = membership.create("home")
    ports = free_ports("127.0.0.1", 3)
    homes = [folder / f"home-{number}" for number in range(3)]
    first = address_of(homes[0], "127.0.0.1", ports[0])
    async with ended_with_us() as processes:
        nodes: list[Process] = []
        for number, (home, port) in enumerate(zip(homes, ports, strict=True)):
            own = replace(
                settings,
                port=port,
                paths=home_of(folder / f"models-{number}"),
                model=str(checkpoint) if number == 0 else checkpoint.name,
                adapter=(str(adapter) if number == 0 else "pirate",),
                bootstrap=(first,) if number else (),
            )
            node = await start(own, swarm, Span(2 * number, 2 * number + 2), home, processes)
            nodes.append(node)
            if number == 0:
                served = [await node.event("serving")]
        served += [await node.event("serving") for node in nodes[1:]]
        addresses = tuple(
            address_of(home, "127.0.0.1", port) for home, port in zip(homes, ports, strict=True)
        )
        yield nodes, served, replace(swarm, bootstrap=addresses)


def offline(home: Path) -> dict[str, str]:
    """The environment of a machine that reaches no hub."""
    environ = process_environ.child_environ(SHOAL_HOME=str(home), SHOAL_HOST="127.0.0.1", SHOAL_MDNS="0")
    return environ | {"SHOAL_FORMAT": FORMAT, "SHOAL_THREADS": "1", "HF_HUB_OFFLINE": "1"}


async def shoal(home: Path, *arguments: str) -> dict[str, Any]:
    """A command of its own process, offline; what it printed."""
    command = [sys.executable, "-m", "shoal.cli", *arguments, "--json"]
    done = await trio.run_process(
        command,
        env=offline(home),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


async def test_a_swarm_of_one_that_has_model_and_adapter_and_two_that_have_nothing_answers(
    checkpoint: Path, adapter: Path, tmp_path: Path, expected: list[tuple[int, ...]]
) -> None:
    async with one_and_two(checkpoint, adapter, tmp_path) as (nodes, served, swarm):
        assert [(node["start"], node["end"]) for node in served] == [(0, 2), (2, 4), (4, 6)]
        whole = open_checkpoint(checkpoint)
        for number in (1, 2):
            (model,) = ModelStore(tmp_path / f"models-{number}" / "models").list()
            blocks = tuple(f"model.layers.{block}." for block in (2 * number, 2 * number + 1))
            assert here_of(model.path) == {name for name in whole.tensors if name.startswith(blocks)}, (
                "its span and no more"
            )
        empty = tmp_path / "client"
        membership.save(empty / "swarms", swarm)
        wanted = {"format": FORMAT, "threads": 1, "host": "127.0.0.1", "mdns": False}
        settings = config.load(wanted, {"SHOAL_HOME": str(empty)})
        async with open_swarm(settings, swarm) as client:
            assert await answers(client, checkpoint.name) == expected
        (model,) = ModelStore(settings.paths.models).list()
        assert not any(name.startswith("model.layers.") for name in here_of(model.path)), "the ends alone"
        nodes[0].signal(signal.SIGKILL)
        pulled = await shoal(empty, "models", "pull", model.digest, "--span", "3:5")
        assert here_of(model.path) >= {
            "model.layers.3.mlp.up_proj.weight",
            "model.layers.4.mlp.up_proj.weight",
        }
        assert pulled["fetched"]["received"] < 1.02 * pulled["fetched"]["bytes"] + 4096
        others = {node["peer"] for node in served[1:]}
        assert set(pulled["fetched"]["by_peer"]) == others, "each has a block"
        # Nor have those who still have the adapter got it from a folder of their own.
        lora = await shoal(empty, "models", "pull", f"{checkpoint.name}:pirate")
        assert (lora["kind"], lora["base"], lora["name"]) == (
            "adapter",
            model.digest,
            f"{checkpoint.name}:pirate",
        )
        assert set(lora["fetched"]["by_peer"]) <= others
        assert bytes_of(adapter).items() <= bytes_of(Path(lora["path"])).items()


async def test_a_model_is_shared_by_a_machine_that_serves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    swarm, digest = membership.create("home"), ModelStore(tmp_path / "look").show(str(checkpoint)).digest
    giver, taker = tmp_path / "giver", tmp_path / "taker"
    membership.save(giver / "swarms", swarm)
    command = [sys.executable, "-m", "shoal.cli", "models", "share", str(checkpoint), "--json"]
    async with trio.open_nursery() as nursery:
        start_it = partial(
            trio.run_process, command, env=offline(giver), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        sharing = await nursery.start(start_it)
        lines = said(sharing.stdout)
        with trio.fail_after(60):
            shared = await anext(lines)
        assert (shared["event"], shared["digest"]) == ("sharing", digest)
        membership.save(taker / "swarms", replace(swarm, bootstrap=tuple(shared["addresses"])))
        pulled = await shoal(taker, "models", "pull", digest)
        assert pulled["fetched"]["by_peer"] == {shared["peer"]: pulled["fetched"]["bytes"]}
        (model,) = ModelStore(taker / "models").list()
        assert here_of(model.path) == set(open_checkpoint(checkpoint).tensors)
        sharing.send_signal(signal.SIGINT)
        with trio.fail_after(20):
            assert (await anext(lines))["event"] == "ended"


async def test_a_graph_is_shared_pulled_and_served_by_its_digest_without_its_file(tmp_path: Path) -> None:
    swarm, giver, taker = membership.create("home"), tmp_path / "giver", tmp_path / "taker"
    graph = GraphStore(giver / "graphs").resolve(str(write_mlp(tmp_path / "mlp.onnx")))
    membership.save(giver / "swarms", swarm)

    def starting(home: Path, *arguments: str) -> partial[Any]:
        command = [sys.executable, "-m", "shoal.cli", *arguments, "--json"]
        environ = offline(home)
        return partial(
            trio.run_process, command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    async with trio.open_nursery() as nursery:
        sharing = said((await nursery.start(starting(giver, "models", "share", "mlp"))).stdout)
        with trio.fail_after(60):
            shared = await anext(sharing)
        assert (shared["event"], shared["digest"]) == ("sharing", graph.digest)
        membership.save(taker / "swarms", replace(swarm, bootstrap=tuple(shared["addresses"])))
        pulled = await shoal(taker, "models", "pull", graph.digest, "--span", "2:4")
        assert (pulled["kind"], set(pulled["fetched"]["by_peer"])) == ("graph", {shared["peer"]})
        (came,) = GraphStore(taker / "graphs").list()
        needed = span_items(came.manifest, Span(0, 8))
        assert len(missing_graph_items(came.folder, came.manifest, needed)) == 6, "two of eight weights"
        serving = said((await nursery.start(starting(taker, "serve", graph.digest, "--span", "auto"))).stdout)
        with trio.fail_after(60):
            turns = [await anext(serving), await anext(serving)]
        assert (turns[1]["event"], turns[1]["start"], turns[1]["end"]) == ("serving", 0, 8)
        assert missing_graph_items(came.folder, came.manifest, needed) == []
        nursery.cancel_scope.cancel()


async def said(stdout: trio.abc.ReceiveStream) -> AsyncGenerator[dict[str, Any]]:
    """The objects that a process prints, one to a line."""
    held = b""
    async for data in stdout:
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            yield json.loads(line)
