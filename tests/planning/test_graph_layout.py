"""Segments of a graph over unlike machines: no placement is better, and a cut that does not pay is told."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from shoal.errors import OutOfResources
from shoal.models.graph.manifest import GraphManifest, GraphSegment, GraphValue
from shoal.planning.graph_layout import GraphLayout, graph_cost, plan_graph, thick_ends
from shoal.planning.roofline import Machine
from shoal.types import Span

from .test_assign import every_placement

DESK = Machine("desk", 1 << 30, 30e9, {"fp32": 1e11}, link=1e8, rtt_s=0.001)


def chain(widths: list[int], *, skip: bool = False, operations: int = 10**8) -> GraphManifest:
    """Segments one after another, each of which gives so many floats; with ``skip`` each also takes what its
    mirror image has made, as a U-Net does."""
    n = len(widths)
    values = [GraphValue(f"v{i}", "float32", (width,)) for i, width in enumerate([100, *widths])]
    segments = [
        GraphSegment(
            i, i + 1, operations, 1000 * (i + 1), (i, n - i) if skip and n - i < i else (i,), (i + 1,)
        )
        for i in range(n)
    ]
    return GraphManifest(2, "graph", "runtime", 1, "0" * 64, (), tuple(values), (0,), (n,), tuple(segments))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("requests", [1, 8])
def test_it_is_within_a_twentieth_of_the_best_placement_there_is(requests: int, skip: bool) -> None:
    rng = Random(5)
    for _ in range(12):
        cost = graph_cost(chain([rng.choice([10, 1000, 30_000]) for _ in range(6)], skip=skip))
        machines = [
            replace(
                DESK,
                name=str(i),
                memory=rng.choice([10_000, 30_000, 1 << 20]),
                ops={"fp32": rng.uniform(1e9, 1e11)},
                link=rng.choice([1e6, 1e7, 1e8]),
                rtt_s=rng.choice([0.0, 0.01]),
            )
            for i in range(4)
        ]
        layout = GraphLayout(machines, cost, requests)
        every = [layout.round_s(stages) for stages in every_placement(layout)]
        if every:
            assert requests / plan_graph(machines, cost, requests).rate <= 1.05 * min(every)


def test_what_a_stretch_takes_and_gives_is_what_its_manifest_says() -> None:
    cost = graph_cost(chain([10, 20, 30, 40], skip=True))
    assert cost.taken[0, 4] == cost.input_bytes == 400
    assert cost.taken[2, 3] == 4 * 20
    assert cost.taken[3, 4] == 4 * (30 + 10)  # its mirror image's too
    assert cost.given[0, 1] == 4 * 10
    assert cost.thickness[3] == (30 + 10) / 100


def test_a_cut_that_memory_asks_for_and_that_costs_more_than_it_saves_is_told() -> None:
    """A U-Net's thinnest place carries eleven times its input."""
    cost = graph_cost(chain([1500, 1100, 1500]))
    small = replace(DESK, memory=8000)
    plan = plan_graph([small, replace(small, name="b", link=1e5)], cost, 1)
    assert len(plan.stages) == 2
    assert "the cut costs more than it saves: desk alone would be" in plan.warning
    assert "times at the thinnest place" in plan.warning
    assert plan_graph([DESK, DESK], cost, 1).warning == ""
    assert "is 11.0 times what goes into the graph" in thick_ends(cost, [Span(0, 2)])
    assert thick_ends(cost, [Span(0, 3)]) == ""


def test_a_graph_that_does_not_fit_says_how_much_is_lacking() -> None:
    with pytest.raises(OutOfResources, match=r"segments 1:3 of 3 find no room"):
        plan_graph([replace(DESK, memory=2500)], graph_cost(chain([1, 1, 1])), 1)
