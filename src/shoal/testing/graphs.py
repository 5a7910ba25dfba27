"""Small ONNX graphs for tests: honest ones of several families. The weights are random; the same each
time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

NamedArrays = dict[str, np.ndarray[Any, Any]]
OPSET = 17


class GraphWriter:
    """Nodes and weights, one after another."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._random = np.random.default_rng(seed)

    def weight(self, *shape: int) -> str:
        """A new weight of normal numbers."""
        scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:] or shape))))
        return self.constant((self._random.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node with one output, which is returned."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def write(self, file: Path, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> Path:
        model = self.model(inputs, outputs)
        file.write_bytes(model.SerializeToString())
        return file

    def model(self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> ModelProto:
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def floats(name: str, *shape: int | str) -> ValueInfoProto:
    """A tensor of float32; texts name sizes that each request chooses."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def write_cnn(file: Path, *, blocks: int = 6, channels: int = 8) -> Path:
    """Images in, ten probabilities out; residual blocks, and any number of images."""
    at = GraphWriter()
    x = at.add("Conv", "images", at.weight(channels, 3, 3, 3), at.weight(channels), pads=[1, 1, 1, 1])
    for _ in range(blocks):
        y = at.add("Conv", x, at.weight(channels, channels, 3, 3), at.weight(channels), pads=[1, 1, 1, 1])
        x = at.add("Add", at.add("Relu", y), x)
    pooled = at.add("Flatten", at.add("GlobalAveragePool", x))
    at.add("Softmax", at.add("MatMul", pooled, at.weight(channels, 10)), output="probabilities", axis=-1)
    return at.write(file, [floats("images", "n", 3, 16, 16)], [floats("probabilities", "n", 10)])


def write_mlp(file: Path, *, layers: int = 8, width: int = 32) -> Path:
    """Two inputs of which the second is added at the end: it crosses all segments. Two outputs."""
    at = GraphWriter(1)
    x = "features"
    for _ in range(layers):
        x = at.add("Tanh", at.add("MatMul", x, at.weight(width, width)))
    at.add("Add", x, "offset", output="scores")
    at.add("ArgMax", "scores", output="best", axis=1, keepdims=0)
    best = helper.make_tensor_value_info("best", TensorProto.INT64, ["n"])
    return at.write(
        file,
        [floats("features", "n", width), floats("offset", "n", width)],
        [floats("scores", "n", width), best],
    )


def write_transformer(file: Path, *, layers: int = 3, width: int = 16, vocabulary: int = 40) -> Path:
    """Token ids in, hidden states out: attention of one head, a normalisation and two products a layer."""
    at = GraphWriter(2)
    x = at.add("Gather", at.weight(vocabulary, width), "token_ids")
    for _ in range(layers):
        q, k, v = (at.add("MatMul", x, at.weight(width, width)) for _ in range(3))
        scores = at.add("MatMul", q, at.add("Transpose", k, perm=[0, 2, 1]))
        attended = at.add("MatMul", at.add("Softmax", scores, axis=-1), v)
        x = _normalised(at, at.add("Add", x, at.add("MatMul", attended, at.weight(width, width))), width)
        inner = at.add("Relu", at.add("MatMul", x, at.weight(width, 4 * width)))
        x = _normalised(at, at.add("Add", x, at.add("MatMul", inner, at.weight(4 * width, width))), width)
    at.add("Identity", x, output="hidden")
    ids = helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["n", "tokens"])
    return at.write(file, [ids], [floats("hidden", "n", "tokens", width)])


def write_branching(file: Path, *, width: int = 16) -> Path:
    """Control flow: which branch is taken depends on the input, and both use values from around them."""
    at = GraphWriter(3)
    x = at.add("Tanh", at.add("MatMul", "features", at.weight(width, width)))
    total = at.add("ReduceSum", x, keepdims=0)
    positive = at.add("Greater", total, at.constant(np.array(0, np.float32)))

    def branch(kind: str) -> Any:
        node = helper.make_node(kind, [x, "features"], [f"{kind}_out"])
        return helper.make_graph([node], kind, [], [floats(f"{kind}_out", "n", width)])

    x = at.add("If", positive, then_branch=branch("Add"), else_branch=branch("Sub"))
    for _ in range(4):
        x = at.add("Tanh", at.add("MatMul", x, at.weight(width, width)))
    at.add("Identity", x, output="scores")
    return at.write(file, [floats("features", "n", width)], [floats("scores", "n", width)])


def write_reshaped(file: Path, *, layers: int = 8, width: int = 16) -> Path:
    """Each request chooses a shape: of what comes after it not even the number of sizes is known before."""
    at = GraphWriter(4)
    x = at.add("Reshape", at.add("MatMul", "features", at.weight(width, width)), "sizes")
    for _ in range(layers):
        x = at.add("Tanh", at.add("MatMul", x, at.weight(width, width)))
    at.add("Identity", x, output="scores")
    sizes = helper.make_tensor_value_info("sizes", TensorProto.INT64, ["rank"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    return at.write(file, [floats("features", "n", width), sizes], [scores])


def write_linear(
    file: Path, *, columns: int = 30, hidden: int = 0, scores: int = 1, final: str = "Sigmoid"
) -> Path:
    """A linear model of ``features``, or a logistic one: one product, or two, and what comes last.

    With ``Softmax`` there are two outputs, the probabilities and the likeliest class.
    """
    at = GraphWriter(5)
    x = "features"
    if hidden:
        x = at.add("Gemm", x, at.weight(hidden, columns), at.weight(hidden), transB=1)
    x = at.add("MatMul", x, at.weight(hidden or columns, scores))
    outputs = [floats("scores", "n", scores)]
    if not final:
        at.add("Add", x, at.weight(scores), output="scores")
        return at.write(file, [floats("features", "n", columns)], outputs)
    x = at.add("Add", x, at.weight(scores))
    at.add(final, x, output="scores")
    if final == "Softmax":
        at.add("ArgMax", "scores", output="best", axis=1, keepdims=0)
        outputs.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["n"]))
    return at.write(file, [floats("features", "n", columns)], outputs)


def _normalised(at: GraphWriter, x: str, width: int) -> str:
    return at.add("LayerNormalization", x, at.weight(width), at.weight(width), axis=-1)


def inputs_of(kind: str, seed: int = 0) -> NamedArrays:
    """What to give to one of :data:`GRAPHS`."""
    random = np.random.default_rng(seed)
    if kind == "transformer":
        return {"token_ids": random.integers(0, 40, (2, 5))}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "cnn": {"images": (2, 3, 16, 16)},
        "mlp": {"features": (3, 32), "offset": (3, 32)},
        "branching": {"features": (2, 16)},
        "reshaped": {"features": (6, 16)},
    }
    made = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes[kind].items()}
    return made | ({"sizes": np.array([2, 3, 16])} if kind == "reshaped" else {})


GRAPHS: dict[str, Callable[[Path], Path]] = {
    "cnn": write_cnn,
    "mlp": write_mlp,
    "transformer": write_transformer,
    "branching": write_branching,
    "reshaped": write_reshaped,
}
"""The honest ones by name."""
