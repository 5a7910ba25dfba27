"""The first and the last segments of graphs, which a client with private ends computes itself.

Each span has a process of its own, as at a node, and its weights come from the graph's file or from peers.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

import trio

from shoal.client.ends import OwnSpan
from shoal.client.graph.known_graph import KnownGraph
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.executor.arrays import Array
from shoal.executor.device.device import cpu, memory_budget
from shoal.executor.graph.arrays import pack_arrays, unpack_arrays
from shoal.executor.graph.runner import GraphRunner, SegmentRunner
from shoal.executor.thread import ComputeThread
from shoal.models.graph.graph_store import GraphStore, LocalGraph
from shoal.models.graph.importer import check_runtime
from shoal.routing.route import routed_span
from shoal.sharing.peer_graphs import PeerGraphs
from shoal.swarm.member import Member
from shoal.types import Digest, Span
from shoal.wire.fields import MAX_PAYLOAD
from shoal.wire.inferring import ArraySpec

MOST = 8
"""Spans that are loaded at a time; those that were longest unused end."""

MakeOwnRunner = Callable[[LocalGraph, Span], SegmentRunner]


class OwnSegments:
    """What one client computes of graphs. Close it afterwards."""

    def __init__(self, member: Member, settings: Settings, store: GraphStore) -> None:
        self._ends = settings.own_blocks
        self._settings = settings
        self._graphs = PeerGraphs(member, settings, store)
        self._runners: OrderedDict[tuple[Digest, Span], SegmentRunner] = OrderedDict()
        self._loading = trio.Lock()
        self._thread: ComputeThread | None = None
        self.make_runner: MakeOwnRunner = self._process
        """Makes what computes a span; by default a process."""

    def routed(self, graph: KnownGraph) -> Span:
        """The segments that peers are to compute.

        Raises:
            UsageError: none are left.
        """
        return routed_span(self._ends, graph.shape.n_blocks)

    async def run(self, graph: KnownGraph, span: Span, there: dict[int, Array]) -> OwnSpan:
        """Compute some segments, and add what they give to the values that are ``there``.

        Raises:
            UsageError: they take more than goes to them at a time.
            IncompatibleLibrary: what computes graphs is not installed.
            BadWeights, NoCoverage, OutOfResources: they cannot be loaded, or fetched.
            StepFailed: they cannot use these values.
        """
        specs, payload = packed(graph, span, there)
        runner = await self._runner(graph, span)
        self._thread = self._thread or ComputeThread("shoal-own-segments")
        computed = partial(_computed, runner, span, specs, payload)
        arrays, compute_ms = await self._thread.run(computed)
        there.update(arrays)
        weight_bytes = sum(one.weight_bytes for one in graph.manifest.segments[span.start : span.end])
        return OwnSpan(span, weight_bytes, 0.0, compute_ms)

    def close(self) -> None:
        """End all processes; what they compute now fails."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        if self._thread is not None:
            self._thread.close()

    async def _runner(self, graph: KnownGraph, span: Span) -> SegmentRunner:
        key = (graph.digest, span)
        async with self._loading:
            if key not in self._runners:
                check_runtime()
                local = await self._graphs.resolve(graph.digest)
                await self._graphs.fetch_span(local, span)
                self._runners[key] = self.make_runner(local, span)
            self._runners.move_to_end(key)
            if len(self._runners) > MOST:
                self._runners.popitem(last=False)[1].close()
            return self._runners[key]

    def _process(self, graph: LocalGraph, span: Span) -> SegmentRunner:
        memory = memory_budget(self._settings, cpu())
        within_s, fast = self._settings.step_timeout_s, self._settings.fast
        return GraphRunner(graph, span, memory=memory, within_s=within_s, fast=fast)


def packed(graph: KnownGraph, span: Span, there: Mapping[int, Array]) -> tuple[tuple[ArraySpec, ...], bytes]:
    """What segments take, of the values that are there.

    Raises:
        UsageError: it is more than goes in one message.
    """
    specs, payload = pack_arrays({value: there[value] for value in graph.manifest.takes(span)})
    if len(payload) > MAX_PAYLOAD:
        raise UsageError(
            f"segments {span} take {len(payload)} bytes, and {MAX_PAYLOAD} go in one message",
            check="send less at a time, for example fewer images",
        )
    return specs, payload


def exposed_inputs(graph: KnownGraph, span: Span) -> tuple[str, ...]:
    """The inputs that peers get as they are, although they compute the segments of ``span`` alone."""
    taken = set(graph.manifest.takes(span))
    return tuple(graph.manifest.values[value].name for value in graph.manifest.inputs if value in taken)


def _computed(
    runner: SegmentRunner, span: Span, specs: tuple[ArraySpec, ...], payload: bytes
) -> tuple[dict[int, Array], float]:
    runner.load()
    began = time.perf_counter()
    made = unpack_arrays(*runner.run(span, specs, payload))
    return made, 1e3 * (time.perf_counter() - began)
