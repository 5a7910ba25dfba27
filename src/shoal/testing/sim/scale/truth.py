"""What a route costs in fact, and the least that any could: with everything known. Arrays of numpy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from shoal.routing.prices import HOP_S
from shoal.routing.route import Stage
from shoal.routing.shortest_path import FloatArray
from shoal.testing.sim.scale.population import (
    ONE_WAY_MS,
    Machines,
)
from shoal.testing.sim.scale.state import ScaleNode
from shoal.types import PeerId

ALONE_STEPS = 0.25
"""Of the blocks that a machine computes in a second for many sessions, it computes so many for one."""


def block_s(node: ScaleNode) -> float:
    """Seconds of one block in a decode step of a session that is alone."""
    return 1 / (node.speed * ALONE_STEPS)


def route_s(
    population: Machines, client: int, route: Sequence[Stage], nodes: dict[PeerId, ScaleNode]
) -> float:
    """Seconds of a decode step all the way round."""
    hops = [nodes[stage.peer] for stage in route]
    machines = [client, *(hop.index for hop in hops), client]
    ways = sum(float(population.way_s(a, b)) for a, b in pairwise(machines))
    computing = sum(block_s(hop) * len(stage.span) + HOP_S for hop, stage in zip(hops, route, strict=True))
    return ways + computing


def least_s(population: Machines, client: int, nodes: Sequence[ScaleNode], n_blocks: int) -> float:
    """The least that a step can take over any of these nodes: a bound, for a peer may be asked twice in it.

    A dynamic programme over blocks and machines. The way between two is that of their regions and both of
    their lines, so the best to come from is looked for by region.
    """
    matrix = np.array(ONE_WAY_MS) / 1e3
    machines = np.array([node.index for node in nodes])
    region, line_s = population.region[machines], population.line_s[machines]
    near = population.way_s(np.full(len(nodes), client), machines)
    each = np.array([block_s(node) for node in nodes])
    starts = np.array([node.span.start for node in nodes])
    ends = np.array([node.span.end for node in nodes])
    cost: FloatArray = np.where(starts == 0, near + HOP_S + each, np.inf)
    for block in range(1, n_blocks):
        leaving = np.full(len(matrix), np.inf)
        np.minimum.at(leaving, region, cost + line_s)
        arriving = (leaving[:, None] + matrix).min(axis=0)
        moved = arriving[region] + line_s + HOP_S
        serving = (starts <= block) & (block < ends)
        cost = np.where(serving, np.minimum(cost, moved) + each, np.inf)
    return float((cost + near).min())
