"""A client that computes a graph's first and last segments itself: the same bits, and peers get no inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from shoal.client.graph import own_segments
from shoal.client.swarm import Swarm
from shoal.errors import StepFailed, UsageError
from shoal.executor.graph.runner import SegmentRunner
from shoal.models.graph.graph_store import GraphStore, LocalGraph
from shoal.models.graph.items import missing_graph_items, span_items
from shoal.testing.graph_bits import same, whole
from shoal.testing.graph_swarm import InProcessRunner, graph_swarm
from shoal.testing.graphs import inputs_of
from shoal.testing.swarm import memory_settings
from shoal.types import Span

from .conftest import Imported

INNER = Span(2, 6)


def in_process(client: Swarm) -> list[InProcessRunner]:
    """Have a client's own segments computed in this process; those that were loaded."""
    made: list[InProcessRunner] = []

    def make(graph: LocalGraph, span: Span) -> SegmentRunner:
        made.append(InProcessRunner(graph, span, memory=0, within_s=1))
        return made[-1]

    client.graphs.own.make_runner = make
    return made


async def test_the_ends_are_computed_here_with_the_bits_of_the_whole(
    imported: Imported, tmp_path: Path
) -> None:
    """By processes of their own, as at a node."""
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, [INNER]) as swarm:
        client = await swarm.add_client(private_ends="2:2")
        known = await client.graphs.resolve(str(graph.folder.parent.parent.parent / "mlp.onnx"))
        answers = [await client.graphs.infer(known, inputs) for _ in range(2)]
        for answer in answers:
            assert same(answer.outputs, whole(graph, inputs))
            assert [stage.span for stage in answer.route] == [INNER]
            assert [own.span for own in answer.own] == [Span(0, 2), Span(6, 8)]
            assert min(own.compute_ms for own in answer.own) > 0
            assert answer.exposed == ()
        assert client.graphs.covered(known) and not swarm.client.graphs.covered(known)


async def test_inputs_that_peers_need_are_told_of(imported: Imported, tmp_path: Path) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, [Span(2, 8), Span(2, 8)]) as swarm:
        client = await swarm.add_client(private_ends="2:0")
        made = in_process(client)
        known = await client.graphs.resolve(graph.digest)
        first = await client.graphs.infer(known, inputs)
        swarm.kill(next(i for i, n in enumerate(swarm.networks) if n.peer == first.route[0].peer))
        again = await client.graphs.infer(known, inputs)  # over the other one
        assert same(first.outputs, whole(graph, inputs)) and same(again.outputs, first.outputs)
        assert first.exposed == ("offset",)
        assert [one.span for one in made] == [Span(0, 2)]


async def test_weights_of_the_ends_come_from_peers_where_there_is_no_file(
    imported: Imported, tmp_path: Path
) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8)], share="on") as swarm:
        client = await swarm.add_client(tmp_path / "new", private_ends="1:2")
        in_process(client)
        answer = await client.graphs.infer(await client.graphs.resolve("mlp"), inputs)
        assert same(answer.outputs, whole(graph, inputs))
        assert [stage.span for stage in answer.route] == [Span(1, 6)]
        store = GraphStore(memory_settings(tmp_path / "new").paths.graphs)
        local = store.find(graph.digest)
        assert local is not None
        missing = missing_graph_items(local.folder, local.manifest, span_items(local.manifest, Span(0, 8)))
        assert len(missing) == 5  # nothing but the ends was fetched


async def test_ends_that_leave_nothing_or_cannot_be_computed_are_told(
    imported: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    monkeypatch.setattr(own_segments, "MOST", 1)
    async with graph_swarm(tmp_path, graph, [Span(0, 8)]) as swarm:
        greedy = await swarm.add_client(private_ends="4:4")
        known = await greedy.graphs.resolve(graph.digest)
        assert not greedy.graphs.covered(known)
        with pytest.raises(UsageError, match="leave no block"):
            await greedy.graphs.infer(known, inputs)
        client = await swarm.add_client(private_ends="1:1")
        made = in_process(client)
        with trio.fail_after(20):
            await client.graphs.infer(known, inputs)
            await client.graphs.infer(known, inputs)
        assert len(made) == 4  # each takes the other's place
        monkeypatch.setattr(InProcessRunner, "run", lambda *_: (_ for _ in ()).throw(StepFailed("it broke")))
        with pytest.raises(StepFailed, match="it broke"):
            await client.graphs.infer(known, inputs)
