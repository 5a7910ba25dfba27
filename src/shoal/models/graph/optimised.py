"""A graph that has been optimised, taken apart: what crosses between its nodes, what they cost, its
weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from shoal.errors import UnsupportedModel
from shoal.models.graph.author import authors_preprocess
from shoal.models.graph.cut import CutNode, CutSegment, choose_cuts, cut_segments
from shoal.models.graph.items import chunk_hashes, write_parts
from shoal.models.graph.linear import find_linear_map
from shoal.models.graph.manifest import (
    GRAPH_VERSION,
    MAX_CROSSING,
    MAX_RANK,
    STRUCTURE,
    GraphManifest,
    GraphSegment,
    GraphValue,
    GraphWeight,
)
from shoal.models.graph.order import choose_order
from shoal.models.graph.proto import check_graph, read_graph, subgraphs, uses
from shoal.models.graph.runtime import ELEMENTS, RUNTIME, optimise, outputs_of, session
from shoal.types import ARRAY_BYTES, ArrayType

LEAST_WEIGHT = 1 << 10
"""Bytes. Smaller constants stay in the structure."""
WEIGHT_TYPES: dict[int, ArrayType] = {
    helper.np_dtype_to_tensor_dtype(np.dtype(dtype)): dtype for dtype in ARRAY_BYTES
}
PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul", "MatMulInteger")
CONVOLUTIONS = ("Conv", "FusedConv", "ConvInteger", "QLinearConv")


@dataclass(frozen=True, slots=True)
class ValueType:
    """What the runtime knows of a value."""

    dtype: ArrayType | None
    """``None`` for what cannot travel: texts, sequences, maps."""
    shape: tuple[int, ...] | None
    """With -1 for what differs from request to request."""

    @property
    def elements(self) -> int:
        """How many there are where each unknown size is 1."""
        return math.prod(max(1, size) for size in self.shape or ())


def import_graph(file: Path, folder: Path, threads: int, sized: Callable[[int], None]) -> GraphManifest:
    """Optimise a graph, cut it, and write its structure and its weights into a folder.

    Args:
        sized: as of that function.

    Raises:
        BadWeights, UnsupportedModel: as :func:`shoal.models.graph.proto.read_graph`.
        UnsupportedModel: the runtime cannot run it, or it takes or gives what is no tensor of numbers.
    """
    model = read_graph(file, sized)
    _drop_defaults(model.graph)
    saved = folder / "optimised.onnx"
    try:
        optimise(model.SerializeToString(), saved, threads)
    except Exception as error:  # of the runtime's own types, by what the file says
        raise _runtime_refuses(file, error) from error
    optimised = ModelProto.FromString(saved.read_bytes())
    saved.unlink()
    check_graph(optimised, file)
    _copy_constant_outputs(optimised.graph)
    for index, node in enumerate(optimised.graph.node):
        node.name = f"n{index}"
    types = value_types(optimised, file)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return _write(optimised, types, folder, file, threads, authors_preprocess(metadata, file))


def value_types(model: ModelProto, file: Path) -> dict[str, ValueType]:
    """The type and shape of every value, as the runtime finds them out without computing anything."""
    asked = ModelProto()
    asked.CopyFrom(model)
    given = {value.name for value in model.graph.output}
    asked.graph.output.extend(
        ValueInfoProto(name=name)
        for node in model.graph.node
        for name in node.output
        if name and name not in given
    )
    try:
        found = outputs_of(session(asked.SerializeToString(), 1))
    except Exception as error:  # as above
        raise _runtime_refuses(file, error) from error
    # The runtime gives no sizes for a single number, and for what may have any number of sizes.
    numbers = {
        value.name
        for value in [*model.graph.value_info, *model.graph.output]
        if value.type.tensor_type.HasField("shape") and not value.type.tensor_type.shape.dim
    }
    types = {
        name: ValueType(ELEMENTS.get(kind), _sizes(shape) if shape or name in numbers else None)
        for name, kind, shape in found
    }
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dims: list[int | str | None] = [
            dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
        ]
        shape = _sizes(dims) if tensor.HasField("shape") else None
        types[value.name] = ValueType(WEIGHT_TYPES.get(tensor.elem_type), shape)
    return types


def node_cost(node: NodeProto, types: Mapping[str, ValueType], weights: Mapping[str, Sequence[int]]) -> float:
    """An estimate of a node's operations: those of products and convolutions by their sizes, else
    elements."""
    moved = sum(types[name].elements for name in [*node.input, *node.output] if name in types)
    moved += sum(math.prod(weights[name]) for name in node.input if name in weights)
    made = types.get(node.output[0]) if node.output else None
    elements = made.elements if made else 1
    if node.op_type in PRODUCTS and len(node.input) > 1:
        first = types.get(node.input[0])
        shape = first.shape if first else weights.get(node.input[0])
        return moved + 2 * elements * (max(1, shape[-1]) if shape else 1)
    if node.op_type in CONVOLUTIONS:
        kernel = next((weights[name] for name in node.input if len(weights.get(name, ())) > 2), ())
        return moved + 2 * elements * math.prod(kernel[1:])
    inner = sum(len(graph.node) for graph in subgraphs(node))
    return moved + inner + 1


def _write(
    model: ModelProto,
    types: Mapping[str, ValueType],
    folder: Path,
    file: Path,
    threads: int,
    preprocess: str,
) -> GraphManifest:
    graph = model.graph
    inputs = [value.name for value in graph.input]
    outputs = [value.name for value in graph.output]
    _check_ends(inputs, outputs, types, file)
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    nodes = [
        CutNode(
            node_cost(node, types, weights),
            tuple(dict.fromkeys(name for name in uses(node) if name not in weights)),
            tuple(filter(None, node.output)),
        )
        for node in graph.node
    ]
    sizes = {name: value.elements * ARRAY_BYTES[value.dtype] for name, value in types.items() if value.dtype}
    order = choose_order(nodes, inputs, outputs, sizes)
    nodes = [nodes[index] for index in order]
    _reorder(graph, order)
    segments = cut_segments(nodes, outputs, choose_cuts(nodes, inputs, outputs, sizes))
    linear = find_linear_map(graph, _shapes(types), {weight.name: weight for weight in graph.initializer}.get)
    arrays = _take_weights(graph)
    structure = model.SerializeToString(deterministic=True)
    (folder / STRUCTURE).write_bytes(structure)
    names = list(
        dict.fromkeys([*inputs, *(name for segment in segments for name in segment.gives), *outputs])
    )
    place = {name: index for index, name in enumerate(names)}
    hashes = [chunk_hashes(structure), *(chunk_hashes(_bytes(array)) for array in arrays.values())]
    weight_place = {name: index for index, name in enumerate(arrays)}
    manifest = GraphManifest(
        version=GRAPH_VERSION,
        kind="graph",
        runtime=RUNTIME,
        threads=threads,
        structure=hashlib.sha256(hashes[0]).hexdigest(),
        weights=tuple(map(_weight, arrays.items(), hashes[1:])),
        values=tuple(GraphValue(name, _dtype(types[name]), types[name].shape) for name in names),
        inputs=tuple(place[name] for name in inputs),
        outputs=tuple(place[name] for name in outputs),
        segments=tuple(_segment(segment, graph, arrays, weight_place, place) for segment in segments),
        preprocess=preprocess,
        structure_size=len(structure),
        linear=linear and linear.described,
    )
    write_parts(folder, manifest, {name: _bytes(array) for name, array in arrays.items()}, hashes)
    return manifest


def _shapes(types: Mapping[str, ValueType]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in types.items() if value.shape is not None}


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _weight(named: tuple[str, np.ndarray[Any, Any]], hashes: bytes) -> GraphWeight:
    name, array = named
    return GraphWeight(
        name,
        cast("ArrayType", array.dtype.name),
        tuple(int(size) for size in array.shape),
        hashlib.sha256(hashes).hexdigest(),
    )


def _segment(
    segment: CutSegment,
    graph: GraphProto,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    weight_place: Mapping[str, int],
    place: Mapping[str, int],
) -> GraphSegment:
    used = {name for node in graph.node[segment.first : segment.end] for name in uses(node)} & arrays.keys()
    return GraphSegment(
        segment.first,
        segment.end,
        segment.cost,
        sum(arrays[name].nbytes for name in used),
        tuple(place[name] for name in segment.takes),
        tuple(place[name] for name in segment.gives),
        tuple(sorted(weight_place[name] for name in used)),
    )


def _take_weights(graph: GraphProto) -> dict[str, np.ndarray[Any, Any]]:
    """Take the large constants out of the graph; by name, in the order of the names."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    kept: list[TensorProto] = []
    for weight in graph.initializer:
        dtype = WEIGHT_TYPES.get(weight.data_type)
        array = cast("np.ndarray[Any, Any]", numpy_helper.to_array(weight)) if dtype else None
        if array is None or array.nbytes < LEAST_WEIGHT or array.ndim > MAX_RANK:
            kept.append(weight)
        else:
            arrays[weight.name] = np.ascontiguousarray(array)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return dict(sorted(arrays.items()))


def _reorder(graph: GraphProto, order: Sequence[int]) -> None:
    """Put the nodes into another order."""
    ordered = [graph.node[index] for index in order]
    del graph.node[:]
    graph.node.extend(ordered)


def _drop_defaults(graph: GraphProto) -> None:
    """Old files list their weights among the inputs, which would let a request replace them."""
    weights = {weight.name for weight in graph.initializer}
    kept = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


def _copy_constant_outputs(graph: GraphProto) -> None:
    """Have a node make each output that is a constant, so that some segment gives it."""
    for weight in graph.initializer:
        if any(value.name == weight.name for value in graph.output):
            copied = f"{weight.name}/constant"
            graph.node.append(NodeProto(op_type="Identity", input=[copied], output=[weight.name]))
            for node in graph.node[:-1]:
                for index, name in enumerate(node.input):
                    if name == weight.name:
                        node.input[index] = copied
            weight.name = copied


def _check_ends(
    inputs: Sequence[str], outputs: Sequence[str], types: Mapping[str, ValueType], file: Path
) -> None:
    for kind, names in (("input", inputs), ("output", outputs)):
        if len(names) > MAX_CROSSING:
            raise UnsupportedModel(f"{file}: it has {len(names)} {kind}s, and {MAX_CROSSING} are the most")
        for name in names:
            found = types.get(name)
            if found is None or found.dtype is None or len(found.shape or ()) > MAX_RANK:
                raise UnsupportedModel(
                    f"{file}: its {kind} {name[:80]!r} is no tensor of numbers",
                    check="export it without texts, sequences and maps (for boosted trees: zipmap=False)",
                )


def _dtype(value: ValueType) -> ArrayType:
    assert value.dtype is not None  # nothing else crosses
    return value.dtype


def _sizes(shape: Sequence[int | str | None]) -> tuple[int, ...] | None:
    return tuple(size if isinstance(size, int) and size >= 0 else -1 for size in shape)


def _runtime_refuses(file: Path, error: Exception) -> Exception:
    if any(words in str(error) for words in ("bad_alloc", "Failed to allocate")):
        return MemoryError(str(error))
    said = str(error).partition("\n")[0][:300]
    return UnsupportedModel(
        f"{file}: ONNX Runtime cannot run it ({said})",
        check="check the file with onnx.checker, and that its operators are the standard's",
    )
