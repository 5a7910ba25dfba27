"""What each of some machines takes for any stretch of a model's blocks. Pure; arrays of numpy.

Whatever is planned comes down to this: language models, where hidden states go round a ring; graphs, where
the client carries the tensors; and a swarm, whose nodes have measured themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from shoal.errors import OutOfResources
from shoal.routing.shortest_path import FloatArray
from shoal.types import Span

StretchTable: TypeAlias = FloatArray
"""``[n_blocks + 1, n_blocks + 1]``: by the first block of a stretch and the one behind its last. Infinite
where there is no such stretch, or the machine has no room for it."""


@dataclass(frozen=True, slots=True)
class PipelineStage:
    """A machine and the blocks that it serves."""

    machine: int
    """By its place among the machines given."""
    span: Span


class Layout(ABC):
    """Machines and blocks, with ``groups`` groups of sessions or requests under way at a time.

    Every group goes through all stages. So a round, in which each group comes through once, takes as long as
    the whole way, or as long as the busiest machine needs for all groups:

        round = max(sum of all stages and ways, groups × busiest)

    With one group that is the latency; with many it is set by the slowest stage.
    """

    def __init__(self, n_blocks: int, n_machines: int, groups: int) -> None:
        self.n_blocks = n_blocks
        self.n_machines = n_machines
        self.groups = groups

    @property
    def head_s(self) -> float:
        """Seconds that the client computes itself, for one group."""
        return 0.0

    @abstractmethod
    def alike(self, machine: int) -> Hashable:
        """Equal for machines that may stand for each other."""

    @abstractmethod
    def make_spent(self, machine: int) -> StretchTable:
        """Seconds that a stage adds to the way of one group: its computing and its ways."""

    @abstractmethod
    def make_busy(self, machine: int) -> StretchTable:
        """Seconds for which one group keeps the machine, or its link."""

    @abstractmethod
    def lacking(self, reach: int) -> OutOfResources:
        """What to say when only the first ``reach`` blocks find room."""

    @cached_property
    def kinds(self) -> list[list[int]]:
        """Machines that are alike, together."""
        found: dict[Hashable, list[int]] = {}
        for machine in range(self.n_machines):
            found.setdefault(self.alike(machine), []).append(machine)
        return list(found.values())

    @cached_property
    def spent(self) -> list[StretchTable]:
        """By kind."""
        return [self.make_spent(kind[0]) for kind in self.kinds]

    @cached_property
    def busy(self) -> list[StretchTable]:
        """By kind."""
        return [self.make_busy(kind[0]) for kind in self.kinds]

    @cached_property
    def kind_of(self) -> dict[int, int]:
        """By machine."""
        return {machine: number for number, kind in enumerate(self.kinds) for machine in kind}

    def spent_s(self, stage: PipelineStage) -> float:
        """Of one stage."""
        return float(self.spent[self.kind_of[stage.machine]][stage.span.start, stage.span.end])

    def busy_s(self, stage: PipelineStage) -> float:
        """Of one stage."""
        return float(self.busy[self.kind_of[stage.machine]][stage.span.start, stage.span.end])

    def way_round(self, stages: Sequence[PipelineStage]) -> float:
        """Seconds of the whole way, with all computing."""
        return self.head_s + sum(map(self.spent_s, stages))

    def busiest(self, stages: Sequence[PipelineStage]) -> float:
        """Seconds that one group keeps the machine or link which is busy the longest."""
        return max(self.head_s, *map(self.busy_s, stages))

    def round_s(self, stages: Sequence[PipelineStage]) -> float:
        """Seconds in which every group comes through once."""
        return max(self.way_round(stages), self.groups * self.busiest(stages))


def stretches(running: Sequence[float]) -> StretchTable:
    """Sums over any stretch, from the sums of the first 0, 1, … values."""
    sums = np.asarray(running, np.float64)
    table: StretchTable = sums[None, :] - sums[:, None]
    table[np.tril_indices(len(sums))] = np.inf
    return table
