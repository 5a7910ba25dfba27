"""Machines that serve segments of a graph: what each takes for them, and what goes there and back. Pure.

The client, on the first machine, carries the tensors: what segments take goes to their machine, and what they
give comes back. A machine computes one request after another; that takes as long as the slower of reading the
weights and computing the operations. Of sizes that each request chooses, 1 is counted. Many requests are
those of many clients: each has a link of its own, such as the first machine's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from shoal.errors import OutOfResources
from shoal.models.graph.manifest import GraphManifest, GraphValue
from shoal.planning.assign import place_best
from shoal.planning.layout import Layout, PipelineStage, StretchTable, stretches
from shoal.planning.roofline import Machine
from shoal.types import ARRAY_BYTES, Span

TENSOR_SHARE = 0.5
"""Share of a node's memory kept for what crosses its segments."""
THICK = 4.0
"""What crosses is worth a word when it is so many times what goes into the graph."""


@dataclass(frozen=True, slots=True)
class GraphCost:
    """What a graph's segments hold, compute, take and give."""

    operations: tuple[float, ...]
    weight_bytes: tuple[int, ...]
    taken: StretchTable
    """Bytes that a stretch of segments takes."""
    given: StretchTable
    """Bytes that it gives."""
    input_bytes: float
    """Of all inputs of the graph."""

    @property
    def thickness(self) -> list[float]:
        """By place between segments, from 0 on, what is sent on there, in shares of the graph's inputs."""
        n = len(self.operations)
        return [float(self.taken[place, n]) / self.input_bytes for place in range(n)]


def graph_cost(manifest: GraphManifest) -> GraphCost:
    """What a manifest says of the cost."""
    n = len(manifest.segments)
    sizes = [_value_bytes(value) for value in manifest.values]
    taken, given = np.full((n + 1, n + 1), np.inf), np.full((n + 1, n + 1), np.inf)
    for begin in range(n):
        for end in range(begin + 1, n + 1):
            span = Span(begin, end)
            taken[begin, end] = sum(sizes[value] for value in manifest.takes(span))
            given[begin, end] = sum(sizes[value] for value in manifest.gives(span))
    return GraphCost(
        tuple(float(max(1, segment.cost)) for segment in manifest.segments),
        tuple(segment.weight_bytes for segment in manifest.segments),
        taken,
        given,
        float(sum(sizes[value] for value in manifest.inputs)) or 1.0,
    )


def _value_bytes(value: GraphValue) -> int:
    return math.prod(max(1, size) for size in value.shape or ()) * ARRAY_BYTES[value.dtype]


class GraphLayout(Layout):
    """What each machine takes for any segments, with ``requests`` requests under way."""

    def __init__(self, machines: Sequence[Machine], cost: GraphCost, requests: int) -> None:
        super().__init__(len(cost.operations), len(machines), requests)
        self.machines = machines
        self.cost = cost
        self._held = stretches(list(accumulate(cost.weight_bytes, initial=0)))

    def alike(self, machine: int) -> Hashable:
        one = self.machines[machine]
        return machine == 0, one.memory, one.bandwidth, one.ops["fp32"], one.link, one.rtt_s

    def computing(self, machine: int) -> StretchTable:
        """Seconds of computing."""
        one, cost = self.machines[machine], self.cost
        each = [
            max(size / one.bandwidth, operations / one.ops["fp32"])
            for size, operations in zip(cost.weight_bytes, cost.operations, strict=True)
        ]
        return stretches(list(accumulate(each, initial=0.0)))

    def ways(self, machine: int) -> StretchTable:
        """Seconds on the way there and back; none on the client's own machine."""
        if machine == 0:
            return np.where(np.isfinite(self._held), 0.0, np.inf)
        one = self.machines[machine]
        return one.rtt_s + (self.cost.taken + self.cost.given) / min(one.link, self.machines[0].link)

    def make_spent(self, machine: int) -> StretchTable:
        room = self.machines[machine].memory * (1 - TENSOR_SHARE)
        return np.where(self._held <= room, self.computing(machine) + self.ways(machine), np.inf)

    def make_busy(self, machine: int) -> StretchTable:
        computing = self.computing(machine)
        if machine == 0:
            return computing
        link = np.maximum(self.cost.taken, self.cost.given) / self.machines[machine].link
        return np.maximum(computing, link)

    def lacking(self, reach: int) -> OutOfResources:
        n = self.n_blocks
        missing = sum(self.cost.weight_bytes[reach:]) / (1 - TENSOR_SHARE)
        return OutOfResources(
            f"{missing / 2**20:,.1f} MiB of memory are lacking: segments {reach}:{n} of {n} find no room, as "
            "half of a machine's memory is kept for tensors",
            check="add machines or memory",
        )


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """Where the segments go, and what comes of it."""

    layout: GraphLayout
    stages: tuple[PipelineStage, ...]
    request_s: float
    """Of one request alone."""
    rate: float
    """Requests in a second, with all of those that are under way at a time."""
    warning: str
    """Where the cut costs more than it saves; else empty."""


def plan_graph(machines: Sequence[Machine], cost: GraphCost, requests: int) -> GraphPlan:
    """The best plan for so many requests at a time: for one, the shortest way; for many, the least busy
    stages.

    Args:
        machines: the first has the client.

    Raises:
        OutOfResources: the graph does not fit.
    """
    layout, stages = place_best([GraphLayout(machines, cost, requests)])
    alone = GraphLayout(machines, cost, 1)
    return GraphPlan(
        layout,
        stages,
        alone.way_round(stages),
        requests / layout.round_s(stages),
        _warning(layout, stages),
    )


def _warning(layout: GraphLayout, stages: Sequence[PipelineStage]) -> str:
    """Why one machine would be better, if it had the memory."""
    n = layout.n_blocks
    if len(stages) < 2:
        return ""
    whole = Span(0, n)
    roomy = [Machine(m.name, 1 << 62, m.bandwidth, m.ops, m.link, m.rtt_s) for m in layout.machines]
    one = GraphLayout(roomy, layout.cost, layout.groups)
    alone = min(((PipelineStage(machine, whole),) for machine in range(len(roomy))), key=one.round_s)
    if one.round_s(alone) >= layout.round_s(stages):
        return ""
    needed = sum(layout.cost.weight_bytes) / (1 - TENSOR_SHARE) / 2**20
    return (
        f"the cut costs more than it saves: {roomy[alone[0].machine].name} alone would be "
        f"{layout.round_s(stages) / one.round_s(alone):.1f} times as fast, if it had {needed:,.1f} MiB; "
        f"{thick_ends(layout.cost, [stage.span for stage in stages]) or 'the ways take the time'}"
    )


def thick_ends(cost: GraphCost, spans: Sequence[Span]) -> str:
    """What crosses at the thickest end of some spans, if that is much; else empty."""
    n = len(cost.operations)
    places = {end for span in spans for end in (span.start, span.end) if 0 < end < n}
    place = max(places, key=lambda place: cost.thickness[place], default=0)
    if not place or cost.thickness[place] < THICK:
        return ""
    thinnest = min(cost.thickness[1:])
    return (
        f"what is sent on at segment {place} is {cost.thickness[place]:.1f} times what goes into the graph, "
        f"and {thinnest:.1f} times at the thinnest place"
    )
