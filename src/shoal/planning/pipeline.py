"""Machines in a ring, and what each takes for any blocks. Pure.

The machines stand as the hops of a route do. The client, with the ends, is on the first machine, which may
serve blocks too. ``n`` sessions go round in ``g`` groups of ``n/g``; each round gives every session a token:

    rate = n / round
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.errors import OutOfResources
from shoal.planning.layout import Layout, PipelineStage, StretchTable, stretches
from shoal.planning.roofline import Machine, SpanCost, hop_time, step_time


@dataclass(frozen=True, slots=True)
class Workload:
    """What the machines are to carry."""

    sessions: int
    context: int
    """Tokens of each session: room is kept for all of them, and decoding is timed when they are cached."""
    row_bytes: float
    """Bytes of one token's hidden states on the wire."""


class Pipeline(Layout):
    """What each machine takes for any blocks, when ``groups`` groups of sessions go round."""

    def __init__(self, machines: Sequence[Machine], cost: SpanCost, load: Workload, groups: int) -> None:
        super().__init__(len(cost.blocks), len(machines), groups)
        self.machines = machines
        self.cost = cost
        self.load = load
        self.batch = math.ceil(load.sessions / groups)
        self.held = _running([b.bytes + load.sessions * b.kv_held(load.context) for b in cost.blocks])
        """Bytes of the first 0, 1, … blocks, with the KV of all sessions in them."""
        self.head = step_time(machines[0], cost.client, self.batch, load.context)
        """What the client computes for one group: the head, and the blocks that it keeps to itself."""
        self._computing = [_running(self._block_times(machine)) for machine in machines]
        self._ways = [hop_time(machine, self.batch, load.row_bytes).seconds for machine in machines]
        self._links = [self.batch * load.row_bytes / machine.link for machine in machines]

    @property
    def head_s(self) -> float:
        return self.head.seconds

    def _block_times(self, machine: Machine) -> list[float]:
        known: dict[object, float] = {}
        for block in self.cost.blocks:
            if block not in known:
                one = SpanCost((block,), self.cost.hidden_size)
                known[block] = step_time(machine, one, self.batch, self.load.context).seconds
        return [known[block] for block in self.cost.blocks]

    def alike(self, machine: int) -> Hashable:
        """All its figures, but for its name; the client's is a kind of its own."""
        one = self.machines[machine]
        return machine == 0, one.memory, one.bandwidth, one.link, one.rtt_s, self._computing[machine][-1]

    def make_spent(self, machine: int) -> StretchTable:
        """The ways are the one out of the stage and, at the first block, the one from the client. There is
        none where both are on one machine."""
        spent = stretches(self._computing[machine]) + self._ways[machine]
        if machine == 0:
            spent[:, -1] -= self._ways[machine]
        else:
            spent[0] += self._ways[0]
        return np.where(stretches(self.held) <= self.room(machine), spent, np.inf)

    def make_busy(self, machine: int) -> StretchTable:
        own = self.head.seconds if machine == 0 else 0.0
        link = np.full(self.n_blocks + 1, self._links[machine])
        if machine == 0:
            link[-1] = 0.0
        return np.maximum(stretches(self._computing[machine]) + own, link)

    def link_s(self, stage: PipelineStage) -> float:
        """How long one group keeps a stage's link."""
        out = stage.machine or stage.span.end < self.n_blocks
        return self._links[stage.machine] if out else 0.0

    def way_s(self, stage: PipelineStage) -> float:
        """The ways that a stage adds."""
        times = self._computing[stage.machine]
        return self.spent_s(stage) - (times[stage.span.end] - times[stage.span.start])

    def room(self, machine: int) -> float:
        """Bytes for blocks and their KV."""
        client = self.cost.client
        ends = client.bytes + self.load.sessions * client.kv_held(self.load.context) if machine == 0 else 0.0
        return self.machines[machine].memory - ends

    def lacking(self, reach: int) -> OutOfResources:
        n, load = self.n_blocks, self.load
        missing = self.held[n] - self.held[reach]
        return OutOfResources(
            f"{missing / 2**30:.2f} GiB of memory are lacking: with KV for {load.sessions} × {load.context} "
            f"tokens, blocks {reach}:{n} of {n} find no room",
            check="add machines or memory, use a smaller --format or --kv int8, or lower --sessions or "
            "--context",
        )

    def check_ends(self) -> None:
        """Raises OutOfResources: what the client runs finds no room; it is placed nowhere else."""
        if (room := self.room(0)) < 0:
            first = self.machines[0]
            raise OutOfResources(
                f"the ends take {(first.memory - room) / 2**30:.2f} GiB, and {first.name}, which has the "
                f"client, lacks {-room / 2**30:.2f} GiB of them",
                check="give the machine with the most memory first, or a smaller --format",
            )


def _running(values: Sequence[float]) -> list[float]:
    """Sums of the first 0, 1, … values."""
    return list(itertools.accumulate(values, initial=0.0))
