"""Where a graph is cut, without any graph: nodes, what they take and make, and how large that is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.models.graph.cut import FEWEST, CutNode, choose_cuts, cut_segments
from shoal.models.graph.manifest import MAX_CROSSING

Chain = list[CutNode]


def chain(*costs: float) -> Chain:
    """One node after another."""
    return [CutNode(cost, (f"v{index}",), (f"v{index + 1}",)) for index, cost in enumerate(costs)]


def sizes(nodes: Chain, size: int = 4) -> dict[str, int]:
    return {name: size for node in nodes for name in (*node.takes, *node.makes)}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Chain, list[str], dict[str, int]]:
    """Any nodes in an order in which each takes what is there; outputs, and sizes of most values."""
    nodes: Chain = []
    there = ["v0"]
    for index in range(draw(st.integers(1, 40))):
        takes = draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True))
        makes = tuple(f"v{index + 1}{part}" for part in draw(st.sampled_from(["", "ab"])) or [""])
        nodes.append(CutNode(draw(st.floats(1, 1e6)), tuple(takes), makes))
        there.extend(makes)
    outputs = draw(st.lists(st.sampled_from(there[1:]), min_size=1, max_size=3, unique=True))
    travels = {name: draw(st.integers(1, 1000)) for name in there if draw(st.integers(0, 9))}
    return nodes, outputs, travels


def test_equal_nodes_are_cut_into_equal_shares() -> None:
    nodes = chain(*[1.0] * 24)
    cuts = choose_cuts(nodes, ["v0"], ["v24"], sizes(nodes), most=6)
    assert cuts == [4, 8, 12, 16, 20]


def test_a_residual_block_is_left_whole() -> None:
    """Its middle carries two tensors, its ends carry one."""
    nodes: Chain = []
    for block in range(4):
        x = f"x{block}"
        nodes.append(CutNode(10, (x,), (f"y{block}",)))
        nodes.append(CutNode(10, (f"y{block}",), (f"z{block}",)))
        nodes.append(CutNode(1, (f"z{block}", x), (f"x{block + 1}",)))
    cuts = choose_cuts(nodes, ["x0"], ["x4"], sizes(nodes), most=4)
    assert cuts == [3, 6, 9]


def test_a_graph_whose_cost_is_in_one_node_is_cut_at_thin_places_all_the_same() -> None:
    nodes = chain(*[1.0] * 8, 1e9, *[1.0] * 8)
    assert len(choose_cuts(nodes, ["v0"], ["v17"], sizes(nodes))) == FEWEST - 1
    thin = sizes(nodes) | {"v3": 1, "v6": 1, "v9": 1, "v12": 1}
    assert choose_cuts(nodes, ["v0"], ["v17"], thin) == [3, 6, 9, 12]
    assert len(choose_cuts(nodes, ["v0"], ["v17"], thin, most=2)) == 1
    assert choose_cuts(chain(1, 1), ["v0"], ["v2"], {"v1": 4}) == [1]


def test_nothing_is_cut_where_what_crosses_cannot_travel() -> None:
    nodes = chain(*[1.0] * 6)
    travels = {name: size for name, size in sizes(nodes).items() if name != "v3"}
    assert 3 not in choose_cuts(nodes, ["v0"], ["v6"], travels)
    assert choose_cuts(nodes, ["v0"], ["v6"], {}) == []


def test_nothing_is_cut_where_more_crosses_than_one_message_takes() -> None:
    many = tuple(f"m{index}" for index in range(MAX_CROSSING + 1))
    nodes = [CutNode(1, ("v0",), many), CutNode(1, many, ("v1",)), CutNode(1, ("v1",), ("v2",))]
    assert choose_cuts(nodes, ["v0"], ["v2"], sizes(nodes)) == [2]


def test_a_large_graph_is_cut_in_a_moment() -> None:
    nodes = chain(*[1.0] * 60_000)
    cuts = choose_cuts(nodes, ["v0"], ["v60000"], sizes(nodes))
    assert len(cuts) == 63


@settings(max_examples=20, deadline=None)
@given(graphs())
def test_segments_in_order_compute_what_the_graph_does(case: tuple[Chain, list[str], dict[str, int]]) -> None:
    nodes, outputs, travels = case
    cuts = choose_cuts(nodes, ["v0"], outputs, travels)
    segments = cut_segments(nodes, outputs, cuts)
    there = {"v0"}
    for segment in segments:
        assert there.issuperset(segment.takes)
        inside = set(segment.takes)
        for node in nodes[segment.first : segment.end]:
            assert inside.issuperset(node.takes)
            inside.update(node.makes)
        assert inside.issuperset(segment.gives)
        there.update(segment.gives)
    assert there.issuperset(outputs)
    assert [segment.first for segment in segments] == [0, *cuts]


@settings(max_examples=20, deadline=None)
@given(graphs())
def test_what_crosses_between_segments_can_travel(case: tuple[Chain, list[str], dict[str, int]]) -> None:
    nodes, outputs, travels = case
    segments = cut_segments(nodes, outputs, choose_cuts(nodes, ["v0"], outputs, travels))
    for segment in segments[1:]:
        assert travels.keys() >= set(segment.takes)
