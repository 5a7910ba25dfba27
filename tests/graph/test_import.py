"""What a graph becomes when it is imported, and which ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

from shoal.errors import BadWeights, IncompatibleLibrary, UnknownModel, UnsupportedModel
from shoal.models.graph import graph_store, importer, proto
from shoal.models.graph.graph_store import GraphStore
from shoal.models.graph.importer import import_apart
from shoal.models.graph.manifest import (
    MANIFEST_FILE,
    GraphManifest,
    graph_digest,
    read_graph_manifest,
    write_graph_manifest,
)
from shoal.models.graph.optimised import import_graph
from shoal.models.graph.proto import read_graph
from shoal.models.untrusted.child import Child
from shoal.testing.graph_bits import whole
from shoal.testing.graphs import GRAPHS, GraphWriter, floats, inputs_of, write_mlp
from shoal.types import Span

from .conftest import Imported, as_the_author_runs_it


def silent(size: int) -> None:
    """Nobody wants to know."""


def small(kind: str = "Relu", domain: str = "") -> ModelProto:
    """A graph of one node."""
    at = GraphWriter()
    at.add(kind, "x", output="y", domain=domain) if domain else at.add(kind, "x", output="y")
    return at.model([floats("x", 4)], [floats("y", 4)])


def refused(model: ModelProto, folder: Path) -> str:
    """Why a graph is refused."""
    file = folder / "graph.onnx"
    file.write_bytes(model.SerializeToString())
    with pytest.raises((BadWeights, UnsupportedModel)) as raised:
        read_graph(file, silent)
    return raised.value.message


@pytest.mark.parametrize("kind", GRAPHS)
def test_an_imported_graph_gives_what_its_file_gives(kind: str, imported: Imported, tmp_path: Path) -> None:
    graph, inputs = imported(kind), inputs_of(kind)
    expected = as_the_author_runs_it(GRAPHS[kind](tmp_path / "graph.onnx"), inputs)
    for found, wanted in zip(whole(graph, inputs).values(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_its_segments_cost_nearly_the_same_and_hold_all_weights(imported: Imported) -> None:
    graph = imported("mlp")
    segments = graph.manifest.segments
    assert len(segments) == 8  # one for each product
    assert len({segment.cost for segment in segments[:-1]}) == 1
    assert graph.weight_bytes(Span(0, 8)) == 8 * 32 * 32 * 4
    assert graph.weight_bytes(Span(2, 4)) == 2 * 32 * 32 * 4


def test_a_second_input_goes_to_the_segment_that_uses_it_alone(imported: Imported) -> None:
    manifest = imported("mlp").manifest
    names = [manifest.values[value].name for value in manifest.takes(Span(7, 8))]
    assert "offset" in names
    assert len(manifest.takes(Span(0, 7))) == len(manifest.gives(Span(0, 7))) == 1


def test_a_branch_takes_what_it_captures_from_around_it(imported: Imported) -> None:
    manifest = imported("branching").manifest
    features = next(value for value in manifest.inputs)
    assert sum(features in segment.takes for segment in manifest.segments) == 2


def test_a_value_of_any_rank_is_told_from_a_single_number(imported: Imported, tmp_path: Path) -> None:
    manifest = imported("reshaped").manifest
    crossing = {value for segment in manifest.segments for value in segment.gives}
    assert {manifest.values[value].shape for value in crossing} == {None}
    assert len(manifest.segments) > 4
    at = GraphWriter()
    at.add("ReduceSum", "x", output="total", keepdims=0)
    manifest = import_graph(
        at.write(tmp_path / "sum.onnx", [floats("x", 4)], [floats("total")]), tmp_path, 1, silent
    )
    assert [value.shape for value in manifest.values] == [(4,), ()]


def test_importing_again_gives_the_same_digest_and_more_threads_another(tmp_path: Path) -> None:
    file = write_mlp(tmp_path / "mlp.onnx", layers=2)
    one, two = GraphStore(tmp_path / "one"), GraphStore(tmp_path / "two")
    first = one.resolve(str(file))
    assert two.resolve(str(file)).digest == first.digest
    assert two.resolve(str(file), threads=2).digest != first.digest
    assert one.find("mlp") == one.find(first.digest) == first
    assert [graph.name for graph in one.list()] == ["mlp"]


def test_of_the_manifests_here_only_that_of_the_wanted_graph_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, decoded = GraphStore(tmp_path / "store"), list[bytes]()

    def read(raw: bytes) -> GraphManifest:
        decoded.append(raw)
        return read_graph_manifest(raw)

    made = [store.resolve(str(write_mlp(tmp_path / f"{name}.onnx", layers=1))) for name in ("one", "two")]
    (made[1].folder / MANIFEST_FILE).write_bytes(broken := made[1].raw[:-1])
    monkeypatch.setattr(graph_store, "read_graph_manifest", read)
    assert store.find("one") == store.find(made[0].digest) == made[0]
    assert decoded == [made[0].raw] * 2
    assert store.find("two") is None  # it is not whole
    assert decoded[2:] == [broken]
    assert store.list() == made[:1]
    assert store.resolve(str(tmp_path / "two.onnx")) == made[1]


def test_what_was_imported_is_not_imported_again_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_mlp(tmp_path / "mlp.onnx", layers=2)
    store = GraphStore(tmp_path / "store")
    first = store.resolve(str(file))
    monkeypatch.setattr(importer, "PROGRAM", "nothing")
    assert store.resolve(str(file)).digest == first.digest
    said = tmp_path / "preprocessor_config.json"  # which is read with it
    said.write_text('{"size": 8}')
    with pytest.raises(BadWeights, match="cannot be imported"):
        store.resolve(str(file))
    said.unlink()
    assert store.resolve(str(file)).digest == first.digest
    write_mlp(file, layers=3)
    with pytest.raises(BadWeights, match="cannot be imported"):
        store.resolve(str(file))


def test_what_an_import_that_was_killed_has_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_mlp(tmp_path / "mlp.onnx", layers=1)
    store = GraphStore(tmp_path / "store")
    monkeypatch.setattr(graph_store, "import_apart", lambda *_: None)  # it writes nothing
    with pytest.raises(BadWeights, match="cannot be read"):
        store.resolve(str(file))
    (folder,) = store.root.glob("[!.]*")
    left, others = (store.root / f".partial-{key}-1" for key in (folder.name, "0" * 32))
    for partial in (left, others):
        partial.mkdir()
    with pytest.raises(BadWeights, match="cannot be read"):
        store.resolve(str(file))
    assert not left.exists()
    assert others.exists()


def test_a_file_that_is_not_there_and_a_missing_extra_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownModel, match="there is no file"):
        GraphStore(tmp_path).resolve(str(tmp_path / "nothing.onnx"))
    monkeypatch.setattr(importer, "find_spec", lambda name: None)
    with pytest.raises(IncompatibleLibrary) as raised:
        GraphStore(tmp_path).resolve(str(write_mlp(tmp_path / "mlp.onnx", layers=1)))
    assert "shoal[graph]" in raised.value.check


def test_custom_operators_and_functions_are_refused_by_name(tmp_path: Path) -> None:
    assert "a custom operator, com.example::Relu" in refused(small(domain="com.example"), tmp_path)
    model = small()
    model.functions.append(helper.make_function("own", "F", [], [], [], []))
    assert "functions of its own ('F')" in refused(model, tmp_path)


def test_a_custom_operator_in_a_branch_is_refused_too(tmp_path: Path) -> None:
    model = small()
    inner = helper.make_graph([helper.make_node("Evil", [], ["z"], domain="evil")], "b", [], [floats("z", 4)])
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))
    assert "evil::Evil" in refused(model, tmp_path)


def with_sparse_constant(**more: str) -> ModelProto:
    """Of the runtime's own reading: its values may be in another file."""
    model = small()
    constant = helper.make_node("Constant", [], ["sparse"], name="c")
    value = constant.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR).sparse_tensor
    value.dims.append(4)
    value.values.CopyFrom(external("secret", **more))
    value.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [4], [0, 1, 2, 3]))
    model.graph.node.insert(0, constant)
    return model


def test_sparse_tensors_are_refused_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    why = "node 'c' has a sparse tensor, 'sparse_value' of Constant"
    model = with_sparse_constant()
    assert why in refused(model, tmp_path)
    model.graph.node[0].attribute[0].type = AttributeProto.UNDEFINED
    assert why in refused(model, tmp_path)
    branch = helper.make_graph([with_sparse_constant().graph.node[0]], "b", [], [floats("sparse", 4)])
    model = small()
    model.graph.node[0].attribute.append(helper.make_attribute("body", branch))
    assert why in refused(model, tmp_path)
    model = small()
    model.graph.node[0].attribute.add(name="many", type=AttributeProto.SPARSE_TENSORS)
    assert "has a sparse tensor, 'many' of Relu" in refused(model, tmp_path)
    model = small()
    body = [with_sparse_constant().graph.node[0]]
    model.functions.append(helper.make_function("", "F", [], ["sparse"], body, []))
    assert "functions of its own" in refused(model, tmp_path)


def test_a_constant_of_a_type_that_is_not_said_is_confined_too(tmp_path: Path) -> None:
    model = small()
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value").t.CopyFrom(external("../secret"))
    model.graph.node.insert(0, constant)
    assert "outside of the graph's folder" in refused(model, tmp_path)


def test_the_process_that_imports_works_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, list[Path]]] = []

    class Watched(Child):
        def __init__(self, *arguments: Any, folder: Path | None = None, **options: Any) -> None:
            assert folder is not None
            self._at = folder
            super().__init__(*arguments, folder=folder, **options)

        def ask(self, *arguments: Any) -> bytes:
            seen.append((self._at.is_dir(), list(self._at.iterdir())))
            return super().ask(*arguments)

    monkeypatch.setattr(importer, "Child", Watched)
    monkeypatch.setattr(importer, "PROGRAM", "nothing")
    file = write_mlp(tmp_path / "mlp.onnx", layers=1)
    with pytest.raises(BadWeights, match="cannot be imported"):
        import_apart(file, tmp_path, 1)
    assert seen == [(True, [])]


def test_what_draws_by_chance_is_refused(tmp_path: Path) -> None:
    assert "draws by chance (RandomNormalLike)" in refused(small("RandomNormalLike"), tmp_path)
    for kind in ("Sampling", "BitmaskDropout"):
        assert f"draws by chance ({kind})" in refused(small(kind, "com.microsoft"), tmp_path)


def with_dropout(training: bool | None) -> ModelProto:
    """A graph that drops values at random when it is trained, which a constant, or an input, says."""
    at = GraphWriter()
    given = "train" if training is None else at.constant(np.array(training))
    at.add("Dropout", "x", "", given, output="y")
    train = helper.make_tensor_value_info("train", TensorProto.BOOL, [])
    return at.model([floats("x", 4), *([train] if training is None else [])], [floats("y", 4)])


def test_dropout_is_refused_where_it_may_train(tmp_path: Path) -> None:
    for training in (True, None):
        assert "draws by chance (Dropout)" in refused(with_dropout(training), tmp_path)
    file = tmp_path / "graph.onnx"
    for model in (with_dropout(False), small("Dropout")):
        file.write_bytes(model.SerializeToString())
        assert read_graph(file, silent).graph.node[0].op_type == "Dropout"


def test_cycles_and_values_from_nowhere_are_refused(tmp_path: Path) -> None:
    model = small()
    model.graph.node[0].input[0] = "y2"
    model.graph.node.append(helper.make_node("Relu", ["y"], ["y2"]))
    assert "the value 'y2' is made out of itself" in refused(model, tmp_path)
    model = small()
    model.graph.node[0].input[0] = "nowhere"
    assert "the value 'nowhere' is made by no node" in refused(model, tmp_path)
    model = small()
    model.graph.node.append(model.graph.node[0])
    assert "the value 'y' is made twice" in refused(model, tmp_path)


def test_more_nodes_than_a_graph_may_have_are_refused(tmp_path: Path) -> None:
    model = small()
    node = helper.make_node("Relu", ["x"], [])
    model.graph.node.extend([node] * proto.MAX_NODES)
    assert f"more than {proto.MAX_NODES} nodes" in refused(model, tmp_path)


def test_branches_nested_without_end_are_refused(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [floats("z", 4)])
    for _ in range(proto.MAX_NESTED + 1):
        node = helper.make_node("Loop", ["", ""], ["z"], body=inner)
        inner = helper.make_graph([node], "b", [], [floats("z", 4)])
    model = small()
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))
    assert "nested more than" in refused(model, tmp_path)


def with_weight(weight: TensorProto) -> ModelProto:
    model = small()
    model.graph.initializer.append(weight)
    return model


def test_a_weight_that_declares_gigabytes_is_refused(tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 29])
    assert "weight 'w' declares 2147483648 bytes" in refused(with_weight(weight), tmp_path)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 40])
    assert "weight 'w' declares" in refused(with_weight(weight), tmp_path)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 20])
    assert "declares 4194304 bytes and has 0" in refused(with_weight(weight), tmp_path)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-1])
    assert "impossible shape" in refused(with_weight(weight), tmp_path)


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", "link/secret", "", "a\\..\\..\\b"],
)
def test_weights_outside_of_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path)
    weight = external(location)
    assert "outside of the graph's folder" in refused(with_weight(weight), folder)


def external(location: str, **more: str) -> TensorProto:
    """Four floats in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    return weight


def test_weights_in_a_file_beside_the_graph_are_read(tmp_path: Path) -> None:
    wanted = np.arange(4, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(bytes(8) + wanted.tobytes())
    file = tmp_path / "graph.onnx"
    file.write_bytes(with_weight(external("weights.bin", offset="8", length="16")).SerializeToString())
    told: list[int] = []
    (weight,) = read_graph(file, told.append).graph.initializer
    assert weight.raw_data == wanted.tobytes()
    assert told == [file.stat().st_size + 16]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"offset": "8"}, "is 16 bytes at 8"),
        ({"length": "8"}, "is 8 bytes at 0"),
        ({"offset": "-4"}, "at -4"),
        ({"offset": "x"}, "no number"),
    ],
)
def test_a_place_outside_of_that_file_is_refused(more: dict[str, str], why: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert why in refused(with_weight(external("weights.bin", **more)), tmp_path)


def test_a_file_larger_than_a_protobuf_can_be_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "graph.onnx"
    with file.open("wb") as stream:
        stream.truncate(3 << 30)  # a sparse file
    with pytest.raises(BadWeights, match="graphs of up to"):
        read_graph(file, silent)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "graph.onnx"
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(BadWeights, match="it is no ONNX file"):
        read_graph(file, silent)
    file.write_bytes(b"")
    with pytest.raises(BadWeights, match="it has no nodes"):
        read_graph(file, silent)


def test_the_process_that_imports_tells_why_it_refuses(tmp_path: Path) -> None:
    file = tmp_path / "graph.onnx"
    file.write_bytes(small("NoSuchOperator").SerializeToString())
    with pytest.raises(UnsupportedModel, match=r"ONNX Runtime cannot run it.*NoSuchOperator"):
        import_apart(file, tmp_path, 1)
    at = GraphWriter()
    at.add("Identity", "words", output="y")
    words = helper.make_tensor_value_info("words", TensorProto.STRING, [1])
    at.write(file, [words], [helper.make_tensor_value_info("y", TensorProto.STRING, [1])])
    with pytest.raises(UnsupportedModel, match="its input 'words' is no tensor of numbers"):
        import_apart(file, tmp_path, 1)


def test_constants_that_fold_to_more_than_there_is_memory_end_the_import_alone(tmp_path: Path) -> None:
    at = GraphWriter()
    shape = at.constant(np.array([15_000, 15_000], np.int64))
    for index in range(4):
        large = at.add("Expand", at.constant(np.full((1, 1), index, np.float32)), shape)
        at.add("Gather", large, "x", output=f"y{index}")
    places = helper.make_tensor_value_info("x", TensorProto.INT64, [1])
    file = at.write(tmp_path / "bomb.onnx", [places], [floats(f"y{index}", 1, 15_000) for index in range(4)])
    with pytest.raises(BadWeights, match="needs more than 1 GiB of memory"):
        GraphStore(tmp_path / "store").resolve(str(file))
    assert not list((tmp_path / "store").glob("[!.]*"))


def test_a_weight_that_no_node_uses_is_left_out(tmp_path: Path) -> None:
    at = GraphWriter()
    at.add("MatMul", "x", at.weight(32, 32), output="y")
    at.weight(64, 64)
    file = at.write(tmp_path / "unused.onnx", [floats("x", 1, 32)], [floats("y", 1, 32)])
    assert [weight.size for weight in GraphStore(tmp_path / "store").resolve(str(file)).manifest.weights] == [
        4 * 32 * 32
    ]


def test_a_manifest_is_read_as_it_was_written_and_lies_are_refused(imported: Imported) -> None:
    graph = imported("mlp")
    assert write_graph_manifest(read_graph_manifest(graph.raw)) == graph.raw
    assert graph.digest == graph_digest(graph.raw)
    fields = json.loads(graph.raw)

    def why(**changed: object) -> str:
        with pytest.raises(BadWeights) as raised:
            read_graph_manifest(msgspec.json.encode(fields | changed))
        return raised.value.message

    first, second, *others = fields["segments"]
    assert "do not follow one another" in why(segments=[first, *others])
    assert "takes what is not there" in why(segments=[[*first[:5], []], second, *others])
    assert "makes a value twice" in why(segments=[[*first[:5], [first[5][0]] * 2], second, *others])
    assert "does not describe" in why(outputs=[99])
    assert "version" in why(version=1)
    assert "values" in why(values=[])
    assert "two of its values" in why(values=[fields["values"][0]] * len(fields["values"]))
    more = ["more", "float32", [1 << 10], "ab" * 32]
    assert "1 of its weights are of no segment" in why(weights=[*fields["weights"], more])
    assert "2147483648 are the most" in why(structure_size=(1 << 31) - 1)
    # Each by itself can be: together they would be hundreds of GB, the hashes of which alone take 8 MB a GB.
    large = [[f"w{number:05}", "float32", [1 << 28], "ab" * 32] for number in range(1000)]
    sized = [*first[:3], 1000 << 30, *first[4:6], list(range(1000))]
    assert "are the most" in why(
        weights=large, segments=[sized, *([*one[:3], 0, *one[4:6]] for one in [second, *others])]
    )
    with pytest.raises(BadWeights, match="a graph's manifest"):
        read_graph_manifest(b"{" * 100_000)
