"""A swarm in memory that serves a graph: real segments in this process, a pretended network."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio

from shoal.config import Settings
from shoal.errors import StepFailed
from shoal.executor.encrypted.processes import EncryptedMapRunner
from shoal.executor.graph.arrays import pack_arrays, unpack_arrays
from shoal.executor.graph.segments import SpanSegments, load_segments
from shoal.models.graph.graph_store import LocalGraph
from shoal.node.graph.graph_node import GraphNode, MakeMapRunner, MakeRunner, start_graph_node
from shoal.swarm.member import Member
from shoal.tasks import one_error
from shoal.testing.memory import MemoryNetwork, World
from shoal.testing.swarm import MemoryPeers, memory_settings
from shoal.types import Span
from shoal.wire.inferring import ArraySpec


class InProcessRunner:
    """Computes segments in this process, where starting one for each node would take a second."""

    def __init__(
        self, graph: LocalGraph, span: Span, *, memory: int, within_s: float, fast: bool = False
    ) -> None:
        self.graph = graph
        self._span = span
        self._fast = fast
        self._loaded: SpanSegments | None = None

    @property
    def span(self) -> Span:
        return self._span

    def load(self) -> None:
        self._loaded = self._loaded or load_segments(self.graph.folder, self._span, fast=self._fast)

    def run(
        self, span: Span, arrays: tuple[ArraySpec, ...], payload: bytes
    ) -> tuple[tuple[ArraySpec, ...], bytes]:
        assert self._loaded is not None
        try:
            return pack_arrays(self._loaded.run(span, unpack_arrays(arrays, payload)))
        except Exception as error:  # whatever the runtime raises
            raise StepFailed(f"segments {span}: {error}") from error

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class GraphSwarm(MemoryPeers[GraphNode]):
    """Nodes of one graph and a client."""

    graph: LocalGraph
    make_runner: MakeRunner = InProcessRunner
    make_map_runner: MakeMapRunner = EncryptedMapRunner

    async def add_node(self, span: Span | None, graph: LocalGraph | None = None, **options: Any) -> GraphNode:
        """One more node; without a span it chooses one."""

        def start(
            network: MemoryNetwork, member: Member, settings: Settings
        ) -> AbstractAsyncContextManager[GraphNode]:
            served = graph or self.graph
            return start_graph_node(
                network,
                member,
                served,
                span,
                settings,
                make_runner=self.make_runner,
                make_map_runner=self.make_map_runner,
            )

        return await self._add(start, options)


@asynccontextmanager
async def graph_swarm(
    home: Path,
    graph: LocalGraph,
    spans: Sequence[Span],
    *,
    make_runner: MakeRunner = InProcessRunner,
    make_map_runner: MakeMapRunner = EncryptedMapRunner,
    **options: Any,
) -> AsyncGenerator[GraphSwarm]:
    """Serve a graph in ``spans``, with a client whose home is that of the nodes.

    Args:
        make_runner: makes what computes a node's segments; by default this process does.
        make_map_runner: makes what computes on encrypted inputs; by default a process of its own.
        options: fields of :class:`shoal.config.Settings`.
    """
    with one_error():
        async with trio.open_nursery() as nursery:
            swarm = GraphSwarm(
                World(), memory_settings(home, **options), nursery, graph, make_runner, make_map_runner
            )
            for span in spans:
                await swarm.add_node(span, **options)
            swarm.client = await swarm.add_client(**options)
            yield swarm
            nursery.cancel_scope.cancel()


def equal_spans(count: int, parts: int) -> list[Span]:
    """``count`` segments in so many spans of nearly one length."""
    bounds = [round(count * part / parts) for part in range(parts + 1)]
    return [Span(start, end) for start, end in pairwise(bounds)]
