"""A graph's weights come from peers: a span's alone, from several at once, each chunk checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from shoal.errors import BadWeights, NoCoverage, UnknownModel
from shoal.executor.graph.segments import LoadedSegments
from shoal.models.graph.graph_store import GraphStore, LocalGraph
from shoal.models.graph.items import graph_parts, missing_graph_items, span_items
from shoal.models.graph.manifest import STRUCTURE, is_graph_manifest
from shoal.sharing import peer_graphs, pull
from shoal.sharing.peer_graphs import PeerGraphs
from shoal.sharing.peer_models import PeerModels, is_graph_here
from shoal.sharing.shared_model import SharedModel
from shoal.swarm.membership import PUBLIC
from shoal.testing.graph_bits import same, whole
from shoal.testing.graph_swarm import GraphSwarm, graph_swarm
from shoal.testing.graphs import inputs_of, write_mlp
from shoal.testing.swarm import memory_settings
from shoal.types import Digest, Span

from .conftest import Imported

SHARING = {"share": "on"}


async def graphs_of(peers: GraphSwarm, home: Path, **options: object) -> tuple[PeerGraphs, GraphStore]:
    """Those of a newcomer that has nothing."""
    client = await peers.add_client(home, **options)
    settings = memory_settings(home, **options)
    store = GraphStore(settings.paths.graphs)
    return PeerGraphs(client.member, settings, store), store


def files_here(graph: LocalGraph) -> set[str]:
    return {file.name for file in graph.folder.iterdir() if file.suffix in (".bin", ".onnx")}


async def test_a_span_is_fetched_alone_and_serves_with_the_same_bits(
    imported: Imported, tmp_path: Path
) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8), Span(0, 8)], **SHARING) as swarm:
        graphs, store = await graphs_of(swarm, tmp_path / "new", **SHARING)
        came = await graphs.resolve(graph.digest)
        assert (came.name, came.raw, files_here(came)) == ("mlp", graph.raw, {STRUCTURE})
        await graphs.fetch_span(came, Span(2, 5))
        wanted = {part.file for part in graph_parts(graph.manifest) if set(part.items) & {3, 4, 5}}
        assert missing_graph_items(came.folder, came.manifest, span_items(came.manifest, Span(2, 5))) == []
        assert files_here(came) - {STRUCTURE} <= {part.file for part in graph_parts(graph.manifest)}
        assert len(files_here(came)) == 1 + 3 and len(wanted) == 3
        assert graphs.report.done == (graph.folder / STRUCTURE).stat().st_size + 3 * 32 * 32 * 4
        swarm.kill(1)
        swarm.kill(0)
        # What one has fetched, it serves and shares; the others' segments come from elsewhere.
        await swarm.add_node(Span(0, 2), graph, **SHARING)
        settings = memory_settings(tmp_path / "new", **SHARING)
        node = await swarm.add_node(Span(2, 5), store.find(graph.digest))
        assert settings.paths.graphs == store.root and node.span == Span(2, 5)
        await swarm.add_node(Span(5, 8), graph)
        assert same(await swarm.client.run(graph.digest, inputs), whole(graph, inputs))


async def test_who_takes_a_span_of_a_graph_that_came_from_peers_fetches_what_is_missing(
    imported: Imported, tmp_path: Path
) -> None:
    graph, inputs = imported("transformer"), inputs_of("transformer")
    count = len(graph.manifest.segments)
    async with graph_swarm(tmp_path, graph, [Span(0, count)], **SHARING) as swarm:
        graphs, _ = await graphs_of(swarm, tmp_path / "new", **SHARING)
        came = await graphs.resolve(graph.digest)
        await graphs.fetch_span(came, Span(0, count))
        assert files_here(came) == {STRUCTURE, *(part.file for part in graph_parts(graph.manifest))}
        parts = LoadedSegments(came.folder, Span(0, count))
        given = parts.run(Span(0, count), {came.manifest.inputs[0]: inputs["token_ids"]})
        names = {came.manifest.values[value].name: array for value, array in given.items()}
        assert same(names, whole(graph, inputs))
        again, _ = await graphs_of(swarm, tmp_path / "new", **SHARING)
        await again.fetch_span(await again.resolve(graph.digest), Span(0, count))
        assert again.report.received == 0


async def test_a_name_or_a_digest_is_found_to_be_a_graph_by_one_manifest(
    imported: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, asked = imported("mlp"), list[str]()
    manifest_bytes = pull.Pull.manifest_bytes

    async def note(self: pull.Pull, digest: Digest) -> bytes:
        asked.append(digest)
        return await manifest_bytes(self, digest)

    monkeypatch.setattr(pull.Pull, "manifest_bytes", note)
    async with graph_swarm(tmp_path, graph, [Span(0, 8)], **SHARING) as swarm:
        for number, name in enumerate((graph.digest, "mlp")):
            home = tmp_path / f"new{number}"
            client = await swarm.add_client(home, **SHARING)
            settings = memory_settings(home, **SHARING)
            assert is_graph_here(GraphStore(settings.paths.graphs), client.store, name) is None
            # The newcomer has heard of nobody yet when it asks.
            found = await PeerModels(client.member, settings).resolve(name)
            assert isinstance(found, LocalGraph)
            assert (found.name, found.digest) == ("mlp", graph.digest)
            again = await PeerGraphs(client.member, settings, GraphStore(settings.paths.graphs)).resolve(name)
            assert (again.digest, len(asked)) == (graph.digest, number + 1)
            assert is_graph_here(GraphStore(settings.paths.graphs), client.store, name) is True
        with pytest.raises(UnknownModel):
            await PeerModels(client.member, settings).resolve("nothing-of-that-name")
        assert is_graph_here(GraphStore(settings.paths.graphs), client.store, "org/model") is False


async def test_nobody_gives_the_weights_of_a_public_swarm_unless_it_is_asked_to(
    imported: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "NOBODY_FOR_S", 0.5)
    monkeypatch.setattr(pull, "LOOK_EVERY_S", 0.1)
    graph = imported("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8)], swarm=PUBLIC) as swarm:
        graphs, _ = await graphs_of(swarm, tmp_path / "new", swarm=PUBLIC)
        with pytest.raises(NoCoverage, match="cannot be fetched from peers"):
            await graphs.resolve(graph.digest)
        with pytest.raises(UnknownModel, match="no graph is known as 'mlp'"):
            await graphs.resolve("mlp")  # nor is a name believed there


async def test_a_peer_that_sends_other_bytes_is_left_out_and_remembered(
    imported: Imported, tmp_path: Path
) -> None:
    graph = imported("mlp")
    async with graph_swarm(tmp_path, graph, [Span(0, 8), Span(0, 8)], **SHARING) as swarm:
        liar = swarm.nodes[0].server.weights
        honest: Callable[[object], bytes] = liar._read  # type: ignore[assignment]

        def wrong(message: object) -> bytes:
            data = honest(message)
            return data[:-1] + bytes([data[-1] ^ 1]) if getattr(message, "part", "") == "chunk" else data

        liar._read = wrong  # type: ignore[method-assign,assignment]
        graphs, _ = await graphs_of(swarm, tmp_path / "new", **SHARING)
        with trio.fail_after(20):
            came = await graphs.resolve(graph.digest)
            await graphs.fetch_span(came, Span(0, 8))
        LoadedSegments(came.folder, Span(0, 8))
        liars = {swarm.networks[0].peer}
        assert graphs.report.wrong <= liars and set(graphs.report.by_peer) == {swarm.networks[1].peer}


def test_a_graph_that_a_peer_made_up_is_refused_by_name_before_it_runs(tmp_path: Path) -> None:
    """Its digest is right, so all that is in it is checked as if it came from a file."""
    import hashlib

    import msgspec
    from onnx import ModelProto, TensorProto

    from shoal.models.graph.items import chunk_hashes

    graph = GraphStore(tmp_path / "graphs").resolve(str(write_mlp(tmp_path / "mlp.onnx", layers=2)))
    honest = ModelProto.FromString((graph.folder / STRUCTURE).read_bytes())

    def refused(change: Callable[[ModelProto], object]) -> str:
        model = ModelProto()
        model.CopyFrom(honest)
        change(model)
        raw = model.SerializeToString()
        sha256 = hashlib.sha256(chunk_hashes(raw)).hexdigest()
        manifest = msgspec.structs.replace(graph.manifest, structure=sha256, structure_size=len(raw))
        (graph.folder / STRUCTURE).write_bytes(raw)
        (graph.folder / "shoal-manifest.json").write_bytes(msgspec.json.encode(manifest))
        with pytest.raises(Exception) as raised:
            LoadedSegments(graph.folder, Span(0, 1))
        return str(raised.value)

    def outside(model: ModelProto) -> None:
        weight = model.graph.initializer.add(name="x", data_type=TensorProto.FLOAT, dims=[1])
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../etc/passwd")

    def one_more(model: ModelProto) -> None:
        model.graph.node.add(op_type="Identity", input=[model.graph.input[0].name], output=["one more"])

    def custom(model: ModelProto) -> None:
        model.graph.node[0].domain = "evil"

    assert "is in another file" in refused(outside)
    assert "is a custom operator, evil::" in refused(custom)
    assert "is made by no node" in refused(lambda model: model.graph.node.pop())
    assert "has other nodes than the manifest says" in refused(one_more)


def test_a_part_that_was_cut_or_changed_on_the_disk_is_not_loaded(tmp_path: Path) -> None:
    graph = GraphStore(tmp_path / "graphs").resolve(str(write_mlp(tmp_path / "mlp.onnx", layers=2)))
    assert is_graph_manifest(graph.raw) and not is_graph_manifest(b'{"version":2}')
    shared = SharedModel.of_graph(graph)
    assert shared.offer() == bytes([0b111])
    file = graph.folder / graph_parts(graph.manifest)[0].file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadWeights, match="became shorter"):
        shared.chunk(1, 0)
    with pytest.raises(BadWeights, match="not what the manifest says"):
        LoadedSegments(graph.folder, Span(0, 1))
    assert peer_graphs.STRUCTURE_ITEM == 0
