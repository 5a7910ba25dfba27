"""A graph over node processes of this machine, one of which is killed while it computes."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from shoal import config
from shoal.client.connect import open_swarm
from shoal.client.graph.graph_client import GraphAnswer
from shoal.client.graph.known_graph import KnownGraph
from shoal.client.swarm import Swarm
from shoal.errors import UsageError
from shoal.local.processes import (
    Process,
    address_of,
    ended_with_us,
    free_ports,
    on_this_machine,
    share,
    start,
)
from shoal.models.graph.graph_store import LocalGraph
from shoal.swarm import membership
from shoal.testing.graph_bits import same, whole
from shoal.testing.graph_swarm import equal_spans
from shoal.testing.graphs import NamedArrays
from shoal.types import PeerId

ASKED_WITHIN_S = 30.0
LOOK_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class KilledGraph:
    """A graph in three parts, each a node process, with a second node for the middle."""

    name: str
    same: bool
    """Whether the bits are those of the whole, before and after the kill."""
    took_s: float
    """From the kill of the middle, which had the request, until the answer was there."""


async def kill_a_hop(
    name: str, graph: LocalGraph, file: Path, inputs: NamedArrays, home: Path
) -> KilledGraph:
    """Ask a graph over three node processes, and once more with one killed in the midst of it.

    Args:
        home: that in whose ``graphs`` it was imported.
    """
    count = len(graph.manifest.segments)
    if count < 3:
        raise UsageError(f"{name} has {count} segments, and three nodes want one each")
    first, middle, last = equal_spans(count, 3)
    spans = [first, middle, last, middle]
    inside = on_this_machine(config.load({"model": str(file)}, {"SHOAL_HOME": str(home)}), "zoo")
    swarm = membership.create(inside.swarm)
    homes = [home / f"{name}-{number}" for number in range(len(spans))]
    ports = free_ports(inside.host, len(spans))
    where = tuple(address_of(one, inside.host, port) for one, port in zip(homes, ports, strict=True))
    async with ended_with_us() as processes:
        for span, one, port in zip(spans, homes, ports, strict=True):
            share(one / "graphs", home / "graphs")  # imported once for all of them
            await start(replace(inside, port=port, bootstrap=where), swarm, span, one, processes)
        serving = [await process.event("serving") for process in processes]
        chosen = PeerId(serving[1]["peer"])
        settings = replace(inside, pin=(chosen,), bootstrap=where)
        async with open_swarm(settings, replace(swarm, bootstrap=where)) as client:
            known = await client.graphs.resolve(str(file))
            before = await client.graphs.infer(known, inputs)
            after, took_s = await _ask_and_kill(client, known, inputs, chosen, processes[1])
    expected = whole(graph, inputs)
    bits = same(before.outputs, expected) and same(after.outputs, expected)
    return KilledGraph(name, bits and after.lost == [chosen], took_s)


async def _ask_and_kill(
    client: Swarm, known: KnownGraph, inputs: NamedArrays, chosen: PeerId, process: Process
) -> tuple[GraphAnswer, float]:
    answers: list[GraphAnswer] = []

    async def ask() -> None:
        answers.append(await client.graphs.infer(known, inputs))

    process.signal(signal.SIGSTOP)  # so it has the request, and does not answer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        with trio.fail_after(ASKED_WITHIN_S):
            while chosen not in client.graphs.asking():  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(LOOK_EVERY_S)
        began = time.perf_counter()
        process.signal(signal.SIGKILL)
    return answers[0], time.perf_counter() - began
