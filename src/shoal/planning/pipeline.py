"""Machines in a ring, and what each takes for any blocks. Pure.

The machines stand as the hops of a route do. The client, with the ends, is on the first machine, which may
serve blocks too. ``n`` sessions go round in ``g`` groups of ``n/g``. A round takes as long as the whole way
round, or as long as the busiest machine or link needs for all groups:

    round = max(sum of all computing and all ways, g × busiest)
    rate  = n / round
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.planning.roofline import Machine, SpanCost, hop_time, step_time
from shoal.types import Span


@dataclass(frozen=True, slots=True)
class Workload:
    """What the machines are to carry."""

    sessions: int
    context: int
    """Tokens of each session: room is kept for all of them, and decoding is timed when they are cached."""
    row_bytes: float
    """Bytes of one token's hidden states on the wire."""


@dataclass(frozen=True, slots=True)
class PipelineStage:
    """A machine and the blocks that it serves."""

    machine: int
    """By its place among the machines given."""
    span: Span


class Pipeline:
    """What each machine takes for any blocks, when ``groups`` groups of sessions go round."""

    def __init__(self, machines: Sequence[Machine], cost: SpanCost, load: Workload, groups: int) -> None:
        self.machines = machines
        self.cost = cost
        self.load = load
        self.groups = groups
        self.batch = math.ceil(load.sessions / groups)
        self.computing = [_running(self._block_times(machine)) for machine in machines]
        """By machine, the seconds that the first 0, 1, … blocks take one group."""
        self.held = _running([b.bytes + load.sessions * b.kv_held(load.context) for b in cost.blocks])
        """Bytes of the first 0, 1, … blocks, with the KV of all sessions in them."""
        self.head = step_time(machines[0], cost.client, self.batch, load.context)
        """What the client computes for one group: the head, and the blocks that it keeps to itself."""
        self._ways = [hop_time(machine, self.batch, load.row_bytes) for machine in machines]
        self.links = [self.batch * load.row_bytes / machine.link for machine in machines]
        """By machine, the seconds that one group's hidden states keep its link."""

    def _block_times(self, machine: Machine) -> list[float]:
        known: dict[object, float] = {}
        for block in self.cost.blocks:
            if block not in known:
                one = SpanCost((block,), self.cost.hidden_size)
                known[block] = step_time(machine, one, self.batch, self.load.context).seconds
        return [known[block] for block in self.cost.blocks]

    def compute_s(self, stage: PipelineStage) -> float:
        """Computing of a stage for one group."""
        times = self.computing[stage.machine]
        return times[stage.span.end] - times[stage.span.start]

    def way_s(self, machine: int, start: int, end: int) -> float:
        """The ways that a stage of blocks ``[start, end)`` adds, in seconds.

        That is the way out of it and, at the first block, the one from the client. There is none where both
        are on one machine.
        """
        to_it = 0.0 if start or machine == 0 else self._ways[0].seconds
        out = 0.0 if end == len(self.cost.blocks) and machine == 0 else self._ways[machine].seconds
        return to_it + out

    def busy_s(self, stage: PipelineStage) -> float:
        """How long one group keeps a stage's machine, or its link."""
        own = self.head.seconds if stage.machine == 0 else 0.0
        return max(self.compute_s(stage) + own, self.link_s(stage))

    def link_s(self, stage: PipelineStage) -> float:
        """How long one group keeps a stage's link."""
        out = stage.machine or stage.span.end < len(self.cost.blocks)
        return self.links[stage.machine] if out else 0.0

    def room(self, machine: int) -> float:
        """Bytes for blocks and their KV."""
        client = self.cost.client
        ends = client.bytes + self.load.sessions * client.kv_held(self.load.context) if machine == 0 else 0.0
        return self.machines[machine].memory - ends

    def way_round(self, stages: Sequence[PipelineStage]) -> float:
        """Seconds of the whole way round, with all computing."""
        ways = sum(self.way_s(stage.machine, stage.span.start, stage.span.end) for stage in stages)
        return self.head.seconds + ways + sum(self.compute_s(stage) for stage in stages)

    def busiest(self, stages: Sequence[PipelineStage]) -> float:
        """Seconds that one group keeps the machine or link which is busy the longest."""
        return max(self.head.seconds, *(self.busy_s(stage) for stage in stages))

    def round_s(self, stages: Sequence[PipelineStage]) -> float:
        """Seconds in which every session gets a token."""
        return max(self.way_round(stages), self.groups * self.busiest(stages))


def _running(values: Sequence[float]) -> list[float]:
    """Sums of the first 0, 1, … values."""
    return list(itertools.accumulate(values, initial=0.0))
