"""A graph cut into parts that run on nodes of their own, held against the graph run whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.executor.graph.runner import GraphRunner
from shoal.models.graph.graph_store import LocalGraph
from shoal.node.graph.graph_node import MakeRunner
from shoal.testing.graph_bits import run_whole, same, whole_session
from shoal.testing.graph_swarm import equal_spans, graph_swarm
from shoal.testing.graphs import NamedArrays
from shoal.testing.zoo.families import FAMILIES, write_family
from shoal.testing.zoo.published import PUBLISHED, published_graph
from shoal.testing.zoo.trees import write_trees
from shoal.types import Span

TREES = "boosted-trees"
ZOO = (*PUBLISHED, *FAMILIES, TREES)
"""The fifteen by name."""
TIMED = 3
"""Requests of which the fastest counts."""


@dataclass(frozen=True, slots=True)
class CutParts:
    """A graph in so many parts."""

    parts: int
    same: bool
    """Whether the bits are those of the whole, through exactly these parts, each time."""
    compute_ms: float
    """Of all parts, as the nodes measured it; the best of some."""


@dataclass(frozen=True, slots=True)
class CutGraph:
    """A graph of the zoo, and what came of cutting it."""

    name: str
    segments: int
    weights: int
    """Bytes."""
    whole_ms: float
    """As it was optimised, uncut; the best of some."""
    cuts: list[CutParts]


def write_graph(name: str, folder: Path) -> tuple[Path, NamedArrays]:
    """The file of a graph of :data:`ZOO`, written where it is not published, and what to ask it with.

    Raises:
        UnknownModel: it is in a package that is not installed.
    """
    if name in PUBLISHED:
        return published_graph(name), PUBLISHED_INPUTS[name](np.random.default_rng(0))
    file = folder / f"{name}.onnx"
    return file, write_trees(file) if name == TREES else write_family(name, file)


def _random(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], NamedArrays]:
    return lambda random: {name: random.random(shape, dtype=np.float32) for name, shape in shapes.items()}


PUBLISHED_INPUTS: dict[str, Callable[[np.random.Generator], NamedArrays]] = {
    "ocr-detect": _random(x=(1, 3, 320, 320)),
    "ocr-direction": _random(x=(1, 3, 48, 192)),
    "ocr-read": _random(x=(1, 3, 48, 320)),
    "voice": _random(input=(4, 576), h=(1, 1, 128), c=(1, 1, 128)),
    "file-type": lambda random: {"bytes": random.integers(0, 256, (1, 2048)).astype(np.int32)},
    "moderation": lambda random: {"input:0": random.random((1, 224, 224, 3), dtype=np.float32)},
}


async def cut_graph(
    name: str,
    graph: LocalGraph,
    inputs: NamedArrays,
    home: Path,
    parts: Sequence[int],
    make_runner: MakeRunner = GraphRunner,
) -> CutGraph:
    """Run a graph whole and in parts, each part on a node of its own.

    Args:
        home: a folder for the nodes.
        make_runner: makes what computes a part; by default a process of its own.
    """
    uncut = whole_session(graph)
    expected = run_whole(uncut, inputs)
    whole_ms = min(timed(lambda: run_whole(uncut, inputs)) for _ in range(TIMED))
    count = len(graph.manifest.segments)
    cuts: list[CutParts] = []
    for number in dict.fromkeys(min(number, count) for number in parts):
        spans = equal_spans(count, number)
        async with graph_swarm(home, graph, spans, make_runner=make_runner) as swarm:
            known = await swarm.client.graphs.resolve(graph.digest)
            answers = [await swarm.client.graphs.infer(known, inputs) for _ in range(TIMED)]
        agree = all(
            same(answer.outputs, expected) and [stage.span for stage in answer.route] == spans
            for answer in answers
        )
        computed = (sum(stage.compute_ms for stage in answer.route) for answer in answers)
        cuts.append(CutParts(number, agree, min(computed)))
    return CutGraph(name, count, graph.weight_bytes(Span(0, count)), whole_ms, cuts)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)
