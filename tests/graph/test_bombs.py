"""Files made to take all memory, all time, or what is not theirs: refused, and the swarm goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from shoal.errors import BadWeights
from shoal.models.graph.proto import MAX_NODES
from shoal.testing.graph_bits import same, whole
from shoal.testing.graph_swarm import equal_spans, graph_swarm
from shoal.testing.graphs import inputs_of

from .conftest import Imported
from .test_import import external, small, with_weight


def a_million_nodes(folder: Path) -> bytes:
    """Protobuf puts two parts of one message together."""
    node = helper.make_node("Relu", ["x"], []).SerializeToString()
    nodes = (b"\x0a" + bytes([len(node)]) + node) * 1_000_000  # GraphProto.node
    return small().SerializeToString() + b"\x3a" + _varint(len(nodes)) + nodes  # ModelProto.graph


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def declared_gigabytes(folder: Path) -> bytes:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 29])
    return with_weight(weight).SerializeToString()


def gigabytes_beside(folder: Path) -> bytes:
    """Three weights of a gigabyte each, in a file that has them: with holes instead of bytes."""
    with (folder / "bomb.data").open("wb") as stream:
        stream.truncate(3 << 30)
    model = small()
    for index in range(3):
        weight = external("bomb.data", offset=str(index << 30))
        weight.name, weight.dims[0] = f"w{index}", 1 << 28
        model.graph.initializer.append(weight)
    return model.SerializeToString()


def a_cycle(folder: Path) -> bytes:
    model = small()
    model.graph.node[0].input[0] = "y2"
    model.graph.node.append(helper.make_node("Relu", ["y"], ["y2"]))
    return model.SerializeToString()


def an_escape(folder: Path) -> bytes:
    (folder / "inside").symlink_to(folder.parent)
    return with_weight(external("inside/secret")).SerializeToString()


BOMBS: dict[Callable[[Path], bytes], str] = {
    a_million_nodes: f"more than {MAX_NODES} nodes",
    declared_gigabytes: "declares 2147483648 bytes",
    gigabytes_beside: "bytes with its weights; graphs of up to",
    a_cycle: "made out of itself",
    an_escape: "outside of the graph's folder",
}


async def test_bombs_are_refused_one_after_another_and_the_swarm_answers_after_each(
    imported: Imported, tmp_path: Path
) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    expected = whole(graph, inputs)
    (tmp_path / "secret").write_bytes(bytes(16))
    async with graph_swarm(tmp_path, graph, equal_spans(8, 2)) as swarm:
        for make, why in BOMBS.items():
            folder = tmp_path / make.__name__
            folder.mkdir()
            (folder / "bomb.onnx").write_bytes(make(folder))
            with pytest.raises(BadWeights, match=why):
                await swarm.client.run(str(folder / "bomb.onnx"), {})
            assert same(await swarm.client.run(graph.digest, inputs), expected)
        assert swarm.client.graphs.store.list() == []
