"""Graphs over a swarm in memory: the same bits as uncut, whoever computes them and whoever is lost."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from shoal.cli.status.overview import overview
from shoal.client.graph.graph_client import GraphAnswer
from shoal.client.graph.hop_search import FAILURES
from shoal.client.graph.inputs import graph_inputs
from shoal.errors import Busy, NoCoverage, OutOfResources, StepFailed, UnknownModel, UsageError
from shoal.gateway.models import Models
from shoal.gateway.page.view import swarm_view
from shoal.models.graph.manifest import graph_numerics
from shoal.node.graph.graph_figures import graph_pages
from shoal.node.graph.graph_node import pick_segments
from shoal.swarm.membership import PUBLIC
from shoal.testing.graph_bits import same, whole
from shoal.testing.graph_swarm import GraphSwarm, equal_spans, graph_swarm
from shoal.testing.graphs import GRAPHS, NamedArrays, inputs_of
from shoal.types import PeerAddress, Span

from .conftest import Imported


@pytest.mark.parametrize("kind", GRAPHS)
async def test_a_graph_in_two_three_and_five_parts_gives_the_bits_of_the_whole(
    kind: str, imported: Imported, tmp_path: Path
) -> None:
    graph, inputs = imported(kind), inputs_of(kind)
    expected = whole(graph, inputs)
    count = len(graph.manifest.segments)
    async with graph_swarm(tmp_path, graph, equal_spans(count, 5)) as swarm:
        known = await swarm.client.graphs.resolve(graph.digest)
        five = await swarm.client.graphs.infer(known, inputs)
        assert same(five.outputs, expected)
        assert [stage.span for stage in five.route] == equal_spans(count, 5)
    async with graph_swarm(tmp_path, graph, equal_spans(count, 2)) as swarm:
        assert same(await swarm.client.run(graph.digest, inputs), expected)


async def test_a_node_of_all_segments_is_asked_for_those_that_are_wanted(
    imported: Imported, tmp_path: Path
) -> None:
    """The route goes through nodes whose spans overlap: each computes its part of it."""
    graph, inputs = imported("cnn"), inputs_of("cnn")
    async with graph_swarm(tmp_path, graph, [Span(0, 4), Span(3, 5), Span(4, 7)]) as swarm:
        assert same(await swarm.client.run(graph.digest, inputs), whole(graph, inputs))


async def test_a_client_that_has_no_file_gets_the_manifest_from_who_serves_the_graph(
    imported: Imported, tmp_path: Path
) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, equal_spans(8, 3)) as swarm:
        stranger = await swarm.add_client(tmp_path / "elsewhere")
        assert stranger.graphs.store.list() == []
        for name in ("mlp", graph.digest):
            assert same(await stranger.run(name, inputs), whole(graph, inputs))


async def test_two_graphs_of_one_name_are_told_apart_by_their_digests(
    imported: Imported, tmp_path: Path
) -> None:
    from dataclasses import replace

    graph, other = imported("mlp"), replace(imported("cnn"), name="mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8)]) as swarm:
        await swarm.add_node(None, other)
        stranger = await swarm.add_client(tmp_path / "elsewhere")
        with pytest.raises(UnknownModel, match="2 graphs are called 'mlp'"):
            await stranger.run("mlp", inputs_of("mlp"))
        assert same(await stranger.run(graph.digest, inputs_of("mlp")), whole(graph, inputs_of("mlp")))


@pytest.mark.parametrize("silent", [False, True])
async def test_a_node_that_is_lost_in_the_midst_of_a_request_is_replaced(
    silent: bool, imported: Imported, tmp_path: Path
) -> None:
    """Whether its channels end, or it says nothing any more."""
    graph, inputs = imported("cnn"), inputs_of("cnn")
    spans = equal_spans(len(graph.manifest.segments), 3)
    async with graph_swarm(tmp_path, graph, [*spans, spans[1]]) as swarm:
        known = await swarm.client.graphs.resolve(graph.digest)
        await heard_of(swarm, 4)
        held = HeldNodes(swarm, [1, 3])
        answers: list[GraphAnswer] = []

        async def ask() -> None:
            answers.append(await swarm.client.graphs.infer(known, inputs))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            asked = await held.asked()
            if silent:
                swarm.world.freeze(swarm.networks[asked].peer)
            else:
                swarm.kill(asked)
            held.release()
        (answer,) = answers
        assert same(answer.outputs, whole(graph, inputs))
        assert answer.lost == [swarm.networks[asked].peer]
        assert [stage.span for stage in answer.route] == spans
        assert swarm.networks[asked].peer not in [stage.peer for stage in answer.route]


class HeldNodes:
    """Nodes that compute nothing until they are released."""

    def __init__(self, swarm: GraphSwarm, indices: list[int]) -> None:
        self._first = trio.Event()
        self._asked: list[int] = []
        self._loop = trio.lowlevel.current_trio_token()
        self._release = threading.Event()
        for index in indices:
            runner = swarm.nodes[index].server.runner
            runner.run = partial(self._run, index, runner.run)  # type: ignore[method-assign]

    def _run(self, index: int, run: Any, *arguments: Any) -> Any:
        self._asked.append(index)
        self._loop.run_sync_soon(self._first.set)
        assert self._release.wait(30)
        return run(*arguments)

    async def asked(self) -> int:
        """The first that has a request."""
        with trio.fail_after(20):
            await self._first.wait()
        return self._asked[0]

    def release(self) -> None:
        self._release.set()


async def test_a_node_that_has_moved_is_followed_to_where_it_says_that_it_is(
    imported: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8)]) as swarm:
        assert same(await swarm.client.run(graph.digest, inputs), whole(graph, inputs))
        (node,), client = swarm.networks, swarm.client.member.network
        moved = PeerAddress(node.peer, ("/memory/elsewhere",))
        monkeypatch.setattr(type(node), "address", moved)
        await swarm.nodes[0].member.announce()
        dialled, dial = trio.Event(), client.open_pipe

        async def open_pipe(address: PeerAddress, *, deadline_s: float) -> Any:
            assert address == moved
            dialled.set()
            return await dial(address, deadline_s=deadline_s)

        monkeypatch.setattr(client, "open_pipe", open_pipe)
        with trio.fail_after(20):
            while swarm.client.member.directory.address_of(node.peer) != moved:
                await swarm.client.member.wait_changed()
            swarm.world.break_pipes(client.peer, node.peer)
            await dialled.wait()
        assert same(await swarm.client.run(graph.digest, inputs), whole(graph, inputs))


async def heard_of(swarm: GraphSwarm, nodes: int) -> None:
    with trio.fail_after(10):
        while len(swarm.client.announcements()) < nodes:
            await swarm.client.member.wait_changed()


async def test_segments_that_nobody_serves_are_named(imported: Imported, tmp_path: Path) -> None:
    graph, inputs = imported("cnn"), inputs_of("cnn")
    async with graph_swarm(tmp_path, graph, equal_spans(6, 2), resume_s=0.3) as swarm:
        with pytest.raises(NoCoverage) as raised:
            with trio.fail_after(20):
                await swarm.client.run(graph.digest, inputs)
        assert raised.value.missing == (Span(6, len(graph.manifest.segments)),)


async def test_when_a_node_joins_in_time_a_request_goes_on(imported: Imported, tmp_path: Path) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, equal_spans(8, 2)) as swarm:
        assert same(await swarm.client.run(graph.digest, inputs), whole(graph, inputs))
        swarm.kill(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swarm.add_node, Span(4, 8))
            assert same(await swarm.client.run(graph.digest, inputs), whole(graph, inputs))


async def test_a_node_chooses_the_segments_that_are_lacking(imported: Imported, tmp_path: Path) -> None:
    graph = imported("mlp")
    weights = graph.weight_bytes(Span(0, 1))
    async with graph_swarm(tmp_path, graph, [Span(0, 4)]) as swarm:
        assert pick_segments(graph, 8 * weights, swarm.client.member) == Span(4, 8)
        with pytest.raises(OutOfResources, match="one segment of mlp"):
            pick_segments(graph, weights, swarm.client.member)


async def test_what_the_graph_cannot_compute_is_told_and_harms_nobody(
    imported: Imported, tmp_path: Path
) -> None:
    graph, inputs = imported("transformer"), inputs_of("transformer")
    count = len(graph.manifest.segments)
    async with graph_swarm(tmp_path, graph, equal_spans(count, 2)) as swarm:
        with pytest.raises(StepFailed, match="out of data bounds"):
            await swarm.client.run(graph.digest, {"token_ids": np.array([[99]])})
        assert same(await swarm.client.run(graph.digest, inputs), whole(graph, inputs))


def cannot_compute(*_: object) -> Any:
    raise StepFailed("it cannot be computed")


async def test_peers_who_only_say_that_they_failed_do_not_fail_a_request(
    imported: Imported, tmp_path: Path
) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8)] * 4) as swarm:
        *liars, honest = (network.peer for network in swarm.networks)
        for node in swarm.nodes[:3]:
            node.server.runner.run = cannot_compute  # type: ignore[method-assign]
        await heard_of(swarm, 4)
        graphs = swarm.client.graphs
        reputation = graphs._finder.reputation  # pyright: ignore[reportPrivateUsage]
        reputation.failed(honest, trio.current_time(), 0.3)  # all others are asked before it
        known = await graphs.resolve(graph.digest)
        first = await graphs.infer(known, inputs)
        assert same(first.outputs, whole(graph, inputs))
        assert (set(first.lost), len(first.lost)) == (set(liars), 3)
        now = trio.current_time()
        assert max(reputation.trust(liar, now) for liar in liars) < reputation.trust(honest, now) / 2


async def test_a_request_that_all_fail_is_to_blame_itself(imported: Imported, tmp_path: Path) -> None:
    """All of them are asked, as nobody is known; one who has proven itself is believed."""
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8)] * 4) as swarm:
        await heard_of(swarm, 4)
        asked: list[int] = []
        for index, node in enumerate(swarm.nodes):
            node.server.runner.run = partial(noted, asked, index)  # type: ignore[method-assign]
        with trio.fail_after(25), pytest.raises(StepFailed, match="cannot be computed"):
            await swarm.client.run(graph.digest, inputs)
        assert sorted(asked) == [0, 1, 2, 3]
        reputation = swarm.client.graphs._finder.reputation  # pyright: ignore[reportPrivateUsage]
        for _ in range(100):
            reputation.answered(network.peer for network in swarm.networks)
        with trio.fail_after(25), pytest.raises(StepFailed, match="cannot be computed"):
            await swarm.client.run(graph.digest, inputs)
        assert len(asked) == 4 + FAILURES


def noted(asked: list[int], index: int, *arguments: object) -> Any:
    asked.append(index)
    return cannot_compute(*arguments)


async def test_a_busy_peer_is_waited_for_where_others_cannot_compute(
    imported: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8)] * 2) as swarm:
        await heard_of(swarm, 2)
        swarm.nodes[0].server.runner.run = cannot_compute  # type: ignore[method-assign]
        sessions = swarm.nodes[1].server._open_sessions  # pyright: ignore[reportPrivateUsage]
        begin, times = sessions.begin, iter(range(2))

        def busy_twice(*arguments: Any) -> None:
            if next(times, None) is not None:
                raise Busy("too many requests wait here")
            begin(*arguments)

        monkeypatch.setattr(sessions, "begin", busy_twice)
        assert same(await swarm.client.run(graph.digest, inputs), whole(graph, inputs))


async def test_many_requests_at_once_are_each_computed_alone(imported: Imported, tmp_path: Path) -> None:
    graph = imported("mlp")
    many = [inputs_of("mlp", seed) for seed in range(12)]
    found: dict[int, NamedArrays] = {}
    async with graph_swarm(tmp_path, graph, equal_spans(8, 2)) as swarm:
        other = await swarm.add_client()

        async def ask(seed: int) -> None:
            client = swarm.client if seed % 2 else other
            found[seed] = await client.run(graph.digest, many[seed])

        async with trio.open_nursery() as nursery:
            for seed in range(len(many)):
                nursery.start_soon(ask, seed)
        assert swarm.nodes[0].server.waiting == 0
    assert all(same(found[seed], whole(graph, inputs)) for seed, inputs in enumerate(many))


async def test_a_graph_node_announces_what_it_serves(imported: Imported, tmp_path: Path) -> None:
    graph = imported("mlp")
    async with graph_swarm(tmp_path, graph, equal_spans(8, 2)) as swarm:
        await swarm.client.run(graph.digest, inputs_of("mlp"))
        (shape,) = swarm.client.models()
        assert (shape.kind, shape.name, shape.n_blocks) == ("graph", "mlp", 8)
        assert swarm.client.coverage(graph.digest) == [1] * 8
        served = swarm.nodes[0].served()
        assert served.step_ms > 0 and served.speed > 0
        text = graph_pages(swarm.nodes[0])["/metrics"].render().decode()
        shown = {s.name: s for family in text_string_to_metric_families(text) for s in family.samples}
        assert shown["shoal_span_blocks"].labels == {"model": "mlp", "start": "0", "end": "4"}
        assert (shown["shoal_span_blocks"].value, shown["shoal_sessions"].value) == (4, 1)
        assert (shown["shoal_channels"].value, shown["shoal_channel_moves_total"].value) == (1, 0)
        assert shown["shoal_bytes_total"].value > 0
        assert await swarm.nodes[0].drain(5)
        assert swarm.nodes[0].served().tokens_free == 0


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"features": np.zeros((3, 32))}, "the input 'offset' is missing"),
        ({"features": 0, "offset": 0, "more": 0}, "no input named 'more'"),
        ({"features": np.zeros((3, 31)), "offset": np.zeros((3, 32))}, "has the shape any×32, not 3×31"),
        ({"features": [[1], [1, 2]], "offset": 0}, "is no array"),
        ({"features": [["a"] * 32], "offset": 0}, "cannot become that"),
        ({"features": np.zeros((3, 32), complex), "offset": 0}, "cannot become that"),
    ],
)
def test_inputs_that_the_graph_does_not_take_are_refused(
    given: dict[str, Any], why: str, imported: Imported
) -> None:
    with pytest.raises(UsageError, match=why):
        graph_inputs(imported("mlp").manifest, given)


def test_inputs_become_what_the_graph_takes(imported: Imported) -> None:
    manifest = imported("mlp").manifest
    made = graph_inputs(manifest, {"features": [[1] * 32], "offset": np.ones((1, 32))})
    assert {array.dtype.name for array in made.values()} == {"float32"}
    ids = imported("transformer").manifest
    assert graph_inputs(ids, {"token_ids": np.array([[1, 2]], np.uint8)})[ids.inputs[0]].dtype == np.int64
    with pytest.raises(UsageError, match="cannot become"):
        graph_inputs(ids, {"token_ids": np.array([[1.5]])})


async def test_status_and_the_page_show_a_graph_as_they_show_a_model(
    imported: Imported, tmp_path: Path
) -> None:
    graph = imported("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 3), Span(3, 6)]) as swarm:
        await heard_of(swarm, 2)
        member = swarm.client.member
        view = overview("home", member.network.peer, member.alive(), [], {}, now=member.now())
        (model,) = view.models
        assert (model.name, model.n_blocks, model.missing) == ("mlp", 8, ["6:8"])
        assert [(peer.start, peer.end) for peer in view.peers] == [(0, 3), (3, 6)]
        page = swarm_view(
            "home", member.network.peer, member.directory, [], {}, [], now=member.now(), wall=0.0
        )
        assert page["models"][0]["missing"] == ["6:8"]


async def test_who_asks_a_graph_for_tokens_is_told_what_it_is(imported: Imported, tmp_path: Path) -> None:
    async with graph_swarm(tmp_path, imported("mlp"), [Span(0, 8)]) as swarm:
        await heard_of(swarm, 1)
        with pytest.raises(UnknownModel, match="mlp is a graph, and no language model"):
            async for _ in swarm.client.generate("mlp", "hello"):
                pass
        with pytest.raises(UnknownModel, match="mlp is a graph"):
            await Models(swarm.client, "fish").find("mlp")


async def test_in_a_public_swarm_no_stranger_says_that_a_name_is_a_graphs(
    imported: Imported, tmp_path: Path
) -> None:
    async with graph_swarm(tmp_path, imported("mlp"), [Span(0, 8)], swarm=PUBLIC) as swarm:
        await heard_of(swarm, 1)
        with pytest.raises(UnknownModel) as caught:
            await swarm.client.weights.resolve("mlp")
        assert "graph" not in caught.value.message


def close(one: NamedArrays, other: NamedArrays) -> bool:
    return one.keys() == other.keys() and all(
        np.allclose(array, other[name], rtol=1e-3, atol=1e-5) for name, array in one.items()
    )


@pytest.mark.parametrize("kind", ["cnn", "transformer", "branching"])
async def test_fast_nodes_give_nearly_the_same_and_share_no_request_with_others(
    kind: str, imported: Imported, tmp_path: Path
) -> None:
    graph, inputs = imported(kind), inputs_of(kind)
    count = len(graph.manifest.segments)
    async with graph_swarm(tmp_path, graph, [Span(0, count)]) as swarm:
        await swarm.add_node(Span(0, 3), fast=True)
        await swarm.add_node(Span(1, count), fast=True)
        exact, fast = [network.peer for network in swarm.networks][:1], swarm.networks[1:]
        assert [node.served().numerics for node in swarm.nodes] == [
            "n1/fp32/auto/any",
            *["n1/fp32/auto/fast"] * 2,
        ]
        hasty = await swarm.add_client(fast=True)
        await heard_of(swarm, 3)
        known = await hasty.graphs.resolve(graph.digest)
        made = await hasty.graphs.infer(known, inputs)
        assert close(made.outputs, whole(graph, inputs))
        assert [stage.peer for stage in made.route] == [network.peer for network in fast]
        exactly = await swarm.client.graphs.infer(known, inputs)
        assert same(exactly.outputs, whole(graph, inputs))
        assert [stage.peer for stage in exactly.route] == exact


async def test_where_only_fast_nodes_serve_an_exact_request_is_told_so(
    imported: Imported, tmp_path: Path
) -> None:
    graph = imported("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8)], fast=True) as swarm:
        other = await swarm.add_client(fast=False)
        known = await other.graphs.resolve(graph.digest)
        with pytest.raises(NoCoverage, match="n1/fp32/auto/fast: these never share") as raised:
            await other.graphs.infer(known, inputs_of("mlp"))
        assert "--fast" in raised.value.check
        assert not other.graphs.covered(known)
        assert swarm.client.graphs.covered(known)
        lacking = pick_segments(graph, 1 << 30, swarm.client.member, graph_numerics(fast=False))
        assert lacking == Span(0, 8)
