"""The order in which a graph is cut, and what its segments are worth beside all of its places."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings

from shoal.models.graph.cut import CutNode, choose_cuts, cut_segments
from shoal.models.graph.manifest import GraphManifest, GraphSegment, GraphValue
from shoal.models.graph.order import choose_order
from shoal.planning.graph_layout import graph_cost, plan_graph
from shoal.planning.roofline import Machine

from .test_cut import graphs

Nodes = list[CutNode]
DESK = Machine("desk", 1 << 40, 30e9, {"fp32": 1e11}, link=1e7, rtt_s=0.001)


def detector() -> tuple[Nodes, dict[str, int]]:
    """Like a detector of pictures: large maps at first, smaller ones by and by, three of which are kept until
    a neck has mixed them. Its thin places lie together at the end, where little is left to compute."""
    nodes: Nodes = []
    sizes = {"x": 3 * 320 * 320}
    rng, x, kept, side, width = Random(3), "x", list[str](), 320, 8
    for stage in range(5):
        side, width = side // 2, width * 2
        for block in range(7):
            out = f"s{stage}b{block}"
            inner = f"{out}i"
            sizes[inner] = 4 * side * side * width * 2
            sizes[out] = 4 * side * side * width
            nodes.append(CutNode(rng.uniform(1, 3) * 1e8, (x,), (inner,)))
            nodes.append(CutNode(rng.uniform(1, 3) * 1e7, (inner,), (out,)))
            x = out
        kept.append(x)
    for level, size in zip((3, 2, 3, 4), (40, 80, 40, 20), strict=True):
        out = f"n{len(nodes)}"
        sizes[out] = 4 * size * size * 32
        nodes.append(CutNode(rng.uniform(1, 4) * 1e8, (x, kept[level]), (out,)))
        x = out
    nodes.append(CutNode(1e6, (x,), ("y",)))
    return nodes, sizes | {"y": 4 * 2100 * 22}


def manifest(nodes: Nodes, sizes: dict[str, int], cuts: list[int], source: str, result: str) -> GraphManifest:
    segments = cut_segments(nodes, [result], cuts)
    names = list(dict.fromkeys([source, *(value for segment in segments for value in segment.gives)]))
    place = {name: index for index, name in enumerate(names)}
    return GraphManifest(
        2,
        "graph",
        "runtime",
        1,
        "0" * 64,
        (),
        tuple(GraphValue(name, "uint8", (sizes[name],)) for name in names),
        (place[source],),
        (place[result],),
        tuple(
            GraphSegment(
                segment.first,
                segment.end,
                segment.cost,
                1000 * (segment.end - segment.first),
                tuple(place[value] for value in segment.takes),
                tuple(place[value] for value in segment.gives),
            )
            for segment in segments
        ),
    )


@pytest.mark.parametrize("requests", [1, 8])
def test_plans_over_64_segments_are_within_a_twentieth_of_plans_over_all_places(requests: int) -> None:
    nodes, sizes = detector()
    cuts = choose_cuts(nodes, ["x"], ["y"], sizes)
    assert len(cuts) < 64 < len(nodes)
    rng = Random(1)
    thin, every = (
        graph_cost(manifest(nodes, sizes, places, "x", "y")) for places in (cuts, list(range(1, len(nodes))))
    )
    for _ in range(12):
        machines = [
            replace(
                DESK,
                name=str(i),
                ops={"fp32": rng.uniform(1e10, 1e11)},
                link=rng.choice([1e7, 1e8, 1e9]),
            )
            for i in range(3)
        ]
        found, best = (plan_graph(machines, cost, requests) for cost in (thin, every))
        assert found.rate >= best.rate / 1.05


def branches(blocks: int, count: int, depth: int) -> tuple[Nodes, dict[str, int]]:
    """Branches that the file has side by side: each level of all of them before the next."""
    nodes: Nodes = []
    for block in range(blocks):
        for level in range(depth):
            for branch in range(count):
                took = f"b{block}r{branch}d{level - 1}" if level else f"x{block}"
                nodes.append(CutNode(10.0, (took,), (f"b{block}r{branch}d{level}",)))
        ends = tuple(f"b{block}r{branch}d{depth - 1}" for branch in range(count))
        nodes.append(CutNode(1.0, ends, (f"x{block + 1}",)))
    return nodes, {value: 1000 for node in nodes for value in (*node.takes, *node.makes)}


def test_of_branches_one_is_computed_to_its_end_before_the_next_where_that_carries_less() -> None:
    nodes, sizes = branches(1, 6, 8)
    order = choose_order(nodes, ["x0"], ["x1"], sizes)
    assert sorted(order) == list(range(len(nodes)))
    cost = [
        graph_cost(manifest(chosen, sizes, choose_cuts(chosen, ["x0"], ["x1"], sizes), "x0", "x1"))
        for chosen in (nodes, [nodes[index] for index in order])
    ]
    middle = [min(one.thickness[len(one.operations) // 3 : 2 * len(one.operations) // 3]) for one in cost]
    assert middle[1] < middle[0]


def test_an_order_that_is_as_good_stays_the_files_own() -> None:
    nodes = [CutNode(1.0, (f"v{i}",), (f"v{i + 1}",)) for i in range(40)]
    sizes = {f"v{i}": 4 for i in range(41)}
    assert choose_order(nodes, ["v0"], ["v40"], sizes) == list(range(40))


@settings(max_examples=20, deadline=None)
@given(graphs())
def test_whatever_the_graph_each_node_comes_after_those_that_it_needs(
    case: tuple[Nodes, list[str], dict[str, int]],
) -> None:
    nodes, outputs, sizes = case
    order = choose_order(nodes, ["v0"], outputs, sizes)
    assert sorted(order) == list(range(len(nodes)))
    there = {"v0"}
    for index in order:
        assert there.issuperset(nodes[index].takes)
        there.update(nodes[index].makes)
    assert all(a < b for a, b in pairwise(choose_cuts([nodes[i] for i in order], ["v0"], outputs, sizes)))
