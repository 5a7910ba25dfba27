"""A graph node's life: load a span of segments, join, announce, serve; when asked to stop, drain and end."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from shoal.config import Settings
from shoal.errors import StepFailed
from shoal.executor.device.device import cpu, memory_budget
from shoal.executor.encrypted.parameters import has_ckks
from shoal.executor.encrypted.processes import EncryptedMapRunner, MapRunner
from shoal.executor.graph.runner import GraphRunner, SegmentRunner
from shoal.executor.thread import ComputeThread
from shoal.models.graph.graph_store import GraphStore, LocalGraph, check_segments
from shoal.models.graph.manifest import GRAPH_NUMERICS, graph_numerics
from shoal.net.network import Network
from shoal.node.admission import DRAIN_S, drain
from shoal.node.graph.graph_server import GraphServer
from shoal.node.graph.graph_sessions import MAX_REQUESTS
from shoal.node.placing.choice import PlacedModel, choose_place
from shoal.planning.graph_layout import TENSOR_SHARE
from shoal.progress import Progress, silent
from shoal.sharing.peer_graphs import PeerGraphs
from shoal.sharing.shared_model import SharedModel
from shoal.sharing.weight_server import answer_address, shares_weights
from shoal.swarm.announcement import Served
from shoal.swarm.member import Member
from shoal.types import Format, Numerics, Span

log = logging.getLogger(__name__)


class MakeRunner(Protocol):
    """Makes what computes a span's segments; the arguments are those of :class:`GraphRunner`."""

    def __call__(
        self, graph: LocalGraph, span: Span, *, memory: int, within_s: float, fast: bool = False
    ) -> SegmentRunner: ...


class MakeMapRunner(Protocol):
    """Makes what computes a linear graph on encrypted inputs; the arguments are those of
    :class:`EncryptedMapRunner`."""

    def __call__(self, folder: Path, *, within_s: float) -> MapRunner: ...


def computes_encrypted(graph: LocalGraph, span: Span) -> bool:
    """Whether a node of these segments computes on encrypted inputs: it has the whole graph, which is linear,
    and what it takes."""
    whole = Span(0, len(graph.manifest.segments))
    return graph.manifest.linear is not None and span == whole and has_ckks()


def pick_segments(
    graph: LocalGraph, memory: int, member: Member, numerics: Numerics = GRAPH_NUMERICS
) -> Span:
    """The span of a graph that the swarm lacks most by these numerics, and that fits.

    Raises:
        OutOfResources: as :func:`choose_place`.
    """
    manifest = graph.manifest
    sizes = [segment.weight_bytes for segment in manifest.segments]
    placed = PlacedModel(graph.shape, numerics, sizes, manifest.work)
    return choose_place(placed, int(memory * (1 - TENSOR_SHARE)), member)


class GraphNode:
    """One span of a graph being served. Made by :func:`start_graph_node`."""

    def __init__(self, graph: LocalGraph, server: GraphServer, member: Member, memory: int) -> None:
        self.model = graph
        self.server = server
        self.member = member
        self._memory = memory

    @property
    def span(self) -> Span:
        return self.server.span

    @property
    def format(self) -> Format:
        return self.server.numerics.format

    def served(self) -> Served:
        """What the node announces, as of now."""
        shape, server = self.model.shape, self.server
        step_ms = server.step_ms
        return Served(
            shape.name,
            shape.digest,
            shape.n_blocks,
            shape.hidden_size,
            shape.context,
            shape.vocab_size,
            self.span.start,
            self.span.end,
            self.format,
            MAX_REQUESTS,
            server.requests_free,
            server.sessions,
            step_ms,
            wait_ms=server.wait_ms,
            speed=1000 * sum(self.model.manifest.work[self.span.start : self.span.end]) / step_ms
            if step_ms
            else 0.0,
            device="cpu",
            device_memory=self._memory,
            kind="graph",
            numerics=str(server.numerics),
            encrypted=server.linear is not None,
        )

    async def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Take no new sessions, tell the swarm, and answer what is here.

        Returns:
            Whether all of it was answered within ``timeout_s``.
        """
        return await drain(self.server, self.member, timeout_s)


@asynccontextmanager
async def start_graph_node(
    network: Network,
    member: Member,
    graph: LocalGraph,
    span: Span | None,
    settings: Settings,
    *,
    make_runner: MakeRunner = GraphRunner,
    make_map_runner: MakeMapRunner = EncryptedMapRunner,
    progress: Progress = silent,
) -> AsyncGenerator[GraphNode]:
    """Load ``span``, or what the swarm lacks most, and serve it until the block ends.

    Args:
        make_runner: makes what computes the segments; by default a process of its own.
        make_map_runner: makes what computes a linear graph on encrypted inputs; by default the same.

    Raises:
        UsageError: the span goes beyond the graph.
        OutOfResources: it does not fit.
        BadWeights: it cannot be loaded.
        NoCoverage: its weights come from peers, and nobody who can be reached has them.
    """
    memory = memory_budget(settings, cpu())
    numerics = graph_numerics(fast=settings.fast)
    chosen = span or pick_segments(graph, memory, member, numerics)
    check_segments(graph, chosen)
    member.directory.know([graph.shape])
    await PeerGraphs(member, settings, GraphStore(settings.paths.graphs)).fetch_span(graph, chosen, progress)
    thread = ComputeThread("shoal-segments")
    runner = make_runner(graph, chosen, memory=memory, within_s=settings.step_timeout_s, fast=settings.fast)
    linear = None
    if computes_encrypted(graph, chosen):
        linear = make_map_runner(graph.folder, within_s=settings.step_timeout_s)
    try:
        await thread.run(runner.load)
        if linear is not None and not await _loads(linear, thread):
            linear.close()
            linear = None
        server = GraphServer(
            network,
            graph,
            runner,
            thread,
            numerics,
            max_sessions=settings.max_sessions,
            share_rate=settings.share_rate,
            linear=linear,
        )
        if shares_weights(settings):
            server.weights.share(SharedModel.of_graph(graph))
            answer_address(network)
        node = GraphNode(graph, server, member, cpu().memory().total)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            member.served = node.served
            await member.announce()
            try:
                yield node
            finally:
                if member.served is not None:
                    with trio.move_on_after(2.0, shield=True):
                        await member.leave()
                nursery.cancel_scope.cancel()
    finally:
        runner.close()
        if linear is not None:
            linear.close()
        thread.close()


async def _loads(linear: MapRunner, thread: ComputeThread) -> bool:
    """Whether a graph can be computed on encrypted inputs here; if not, that is said, and not announced."""
    try:
        await thread.run(linear.load)
    except StepFailed as error:
        log.warning("encrypted inputs are not computed here: %s", error.message)
        return False
    return True
