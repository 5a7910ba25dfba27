"""A stranger's ONNX file, looked over before anything runs it. Only the process that imports graphs uses
this.

Refused by name: operators that are not the standard's or the runtime's own, functions, files outside of the
model's folder, weights that are not there, values made twice or out of themselves, and whatever would give
other bits each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from shoal.errors import BadWeights, UnsupportedModel

MAX_GRAPH_FILE = (1 << 31) - (1 << 20)
"""Bytes of a graph with all its weights: a protobuf has no more than 2 GiB."""
MAX_NODES = 1 << 16
"""Of a graph, those in its branches and loops included."""
MAX_NESTED = 16
"""Branches and loops in one another."""
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Whose operators the runtime brings along."""
RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Sampling",
        "BiasDropout",
        "BitmaskDropout",
        "BitmaskBiasDropout",
    }
)
SPARSE = frozenset({AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS})
ELEMENT_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.DOUBLE: 64,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.UINT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}


def read_graph(file: Path, sized: Callable[[int], None]) -> ModelProto:
    """Read and check a graph, and the files that its weights are in.

    Args:
        sized: told how many bytes it has with all its weights, before those are read.

    Raises:
        BadWeights: it is damaged, dishonest or too large.
        UnsupportedModel: it does what we do not run.
    """
    size = file.stat().st_size
    if size > MAX_GRAPH_FILE:
        raise too_large(file, size)
    try:
        model = ModelProto.FromString(file.read_bytes())
    except Exception as error:  # DecodeError, of whichever protobuf there is
        raise BadWeights(
            f"{file}: it is no ONNX file ({str(error)[:200]})", check="export it again"
        ) from error
    if not model.graph.node:
        raise BadWeights(f"{file}: it has no nodes", check="check that it is an ONNX file")
    check_graph(model, file)
    sized(_check_weights(model, file, size))
    _read_external(model, file)
    return model


def check_structure(model: ModelProto, file: Path, weights: Set[str]) -> None:
    """Check a graph without its weights, which may have come from a peer.

    Args:
        weights: the names of those.

    Raises:
        BadWeights, UnsupportedModel: as :func:`read_graph`; or it names other files.
    """
    check_graph(model, file, weights)
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors_of(model.graph)):
        raise BadWeights(f"{file}: a constant of it is in another file", check="check who made the graph")
    _check_weights(model, file, 0)


def check_graph(model: ModelProto, file: Path, weights: Set[str] = frozenset()) -> None:
    """Raises BadWeights, UnsupportedModel: as :func:`read_graph`, of all but the weights' bytes."""
    if model.functions:
        raise UnsupportedModel(
            f"{file}: it has functions of its own ({model.functions[0].name[:80]!r})",
            check="inline them: onnx.inliner.inline_local_functions",
        )
    if model.training_info:
        raise UnsupportedModel(f"{file}: it has a training graph", check="export it for inference")
    count, off = 0, set(_falses(model.graph))
    for graph, depth in graphs_of(model.graph):
        count += len(graph.node)
        if count > MAX_NODES:
            raise BadWeights(f"{file}: it has more than {MAX_NODES} nodes", check="check who made the file")
        if depth > MAX_NESTED:
            raise BadWeights(f"{file}: branches and loops are nested more than {MAX_NESTED} deep")
        if graph.sparse_initializer:
            raise UnsupportedModel(f"{file}: it has sparse weights", check="export it with dense ones")
        for node in graph.node:
            _check_node(node, off, file)
    _check_order(model.graph, file, weights)


def graphs_of(graph: GraphProto) -> Iterator[tuple[GraphProto, int]]:
    """The graph and those in its nodes, each with how deep it is."""
    todo = [(graph, 0)]
    while todo:
        found, depth = todo.pop()
        yield found, depth
        if depth <= MAX_NESTED:
            todo.extend((inner, depth + 1) for node in found.node for inner in subgraphs(node))


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The branches, or the body, of a node of control flow."""
    for attribute in node.attribute:
        if attribute.HasField("g"):  # whatever type it says that it has
            yield attribute.g
        yield from attribute.graphs


def uses(node: NodeProto) -> Iterator[str]:
    """The values that a node takes, those that its branches capture from around it included."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {weight.name for weight in graph.initializer}
        for inner in graph.node:
            for name in uses(inner):
                if name not in own:
                    yield name
            own.update(inner.output)
        # What a branch gives may be a value from around it, as it is.
        yield from (value.name for value in graph.output if value.name not in own)


def tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    """Every constant of a graph: initializers, and those in nodes."""
    for inner, _ in graphs_of(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def too_large(file: Path, size: int) -> BadWeights:
    """Why a graph of so many bytes is not read."""
    return BadWeights(
        f"{file}: {size} bytes with its weights; graphs of up to {MAX_GRAPH_FILE} are read",
        check="export it in float16, or in parts",
    )


def _falses(graph: GraphProto) -> Iterator[str]:
    """The constants of a graph that say no, and no input: nothing is trained by what they say."""
    yield ""
    for inner, _ in graphs_of(graph):
        constants = [(weight.name, weight) for weight in inner.initializer]
        for node in inner.node:
            if node.op_type == "Constant" and node.output:
                constants += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
        yield from (name for name, tensor in constants if _says_no(tensor))


def _says_no(tensor: TensorProto) -> bool:
    held = tensor.raw_data == b"\0" or list(tensor.int32_data) == [0]
    return tensor.data_type == TensorProto.BOOL and held


def _check_node(node: NodeProto, off: Set[str], file: Path) -> None:
    named = f"node {node.name[:80]!r}" if node.name else "a node"
    if node.domain not in DOMAINS:
        raise UnsupportedModel(
            f"{file}: {named} is a custom operator, {node.domain[:80]}::{node.op_type[:80]}",
            check="export it with standard operators: others would need code of their makers",
        )
    for attribute in node.attribute:
        # The runtime would read their values itself, also out of other files.
        if (
            attribute.type in SPARSE
            or attribute.HasField("sparse_tensor")
            or len(attribute.sparse_tensors) > 0
        ):
            raise UnsupportedModel(
                f"{file}: {named} has a sparse tensor, {attribute.name[:80]!r} of {node.op_type[:80]}",
                check="export it with dense ones",
            )
    trains = node.op_type == "Dropout" and any(name not in off for name in node.input[2:3])
    if node.op_type in RANDOM or trains:
        raise UnsupportedModel(
            f"{file}: {named} draws by chance ({node.op_type}), so no two runs give the same",
            check="export it for inference, or make what is drawn an input",
        )


def _check_order(graph: GraphProto, file: Path, weights: Set[str]) -> None:
    """Each value is made once, and before it is used."""
    makers = [name for node in graph.node for name in node.output if name]
    made = {value.name for value in graph.input} | {weight.name for weight in graph.initializer} | weights
    if twice := _first_twice([*made, *makers]):
        raise BadWeights(f"{file}: the value {twice[:80]!r} is made twice")
    everybody = {*made, *makers}
    for node in graph.node:
        for name in uses(node):
            if name not in made:
                why = "is made out of itself: a cycle, or an order in which it comes too late"
                raise BadWeights(
                    f"{file}: the value {name[:80]!r} {why if name in everybody else 'is made by no node'}",
                    check="check the file with onnx.checker",
                )
        made.update(node.output)
    for value in graph.output:
        if value.name not in made:
            raise BadWeights(f"{file}: its output {value.name[:80]!r} is made by no node")


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_weights(model: ModelProto, file: Path, size: int) -> int:
    """Every constant has the bytes that it declares. Returns the bytes of them all, other files' included."""
    total = size
    for tensor in tensors_of(model.graph):
        declared = declared_size(tensor, file)
        if tensor.data_location == TensorProto.EXTERNAL:
            total += declared
            if total > MAX_GRAPH_FILE:
                raise too_large(file, total)
        elif (found := _held(tensor)) is not None and found != declared:
            raise BadWeights(
                f"{file}: weight {tensor.name[:80]!r} declares {declared} bytes and has {found}",
                check="export it again",
            )
    return total


def _read_external(model: ModelProto, file: Path) -> None:
    """Read the weights that are in other files into the graph."""
    folder = file.parent.resolve()
    for tensor in tensors_of(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            data = _external(tensor, folder, file, declared_size(tensor, file))
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
            tensor.raw_data = data


def declared_size(tensor: TensorProto, file: Path) -> int:
    """Bytes that a tensor's type and shape ask for; of texts, their number.

    Raises:
        BadWeights: they cannot be.
    """
    bits = 8 if tensor.data_type == TensorProto.STRING else ELEMENT_BITS.get(tensor.data_type)
    if bits is None:
        raise BadWeights(
            f"{file}: weight {tensor.name[:80]!r} is of type {tensor.data_type}, which is not read"
        )
    if any(size < 0 for size in tensor.dims) or len(tensor.dims) > 64:
        raise BadWeights(f"{file}: weight {tensor.name[:80]!r} has an impossible shape")
    size = (math.prod(tensor.dims) * bits + 7) // 8
    if size > MAX_GRAPH_FILE:
        raise BadWeights(
            f"{file}: weight {tensor.name[:80]!r} declares {size} bytes; {MAX_GRAPH_FILE} are the most",
            check="check who made the file",
        )
    return size


def _held(tensor: TensorProto) -> int | None:
    """Bytes of elements that a tensor brings; ``None`` where several share a number, which the runtime
    counts."""
    bits = ELEMENT_BITS.get(tensor.data_type, 8)
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    if bits < 8:
        return None
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return (sum(map(len, fields)) + len(tensor.string_data)) * bits // 8


def _external(tensor: TensorProto, folder: Path, file: Path, declared: int) -> bytes:
    """The bytes of a weight that is in another file of the graph's folder."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    bad = f"{file}: weight {tensor.name[:80]!r}"
    plain = PurePosixPath(location)
    escapes = (
        plain.is_absolute() or ".." in plain.parts or PureWindowsPath(location).drive or "\\" in location
    )
    path = (folder / location).resolve() if location and not escapes and "\0" not in location else None
    if path is None or not path.is_relative_to(folder):
        raise BadWeights(
            f"{bad} is in {location[:200]!r}, outside of the graph's folder",
            check="check who made the file: nothing outside of the folder is read",
        )
    if not path.is_file():
        raise BadWeights(f"{bad} is in {location[:200]!r}, which is not there", check="fetch that file too")
    try:
        offset, length = int(said.get("offset", "0")), int(said.get("length", str(declared)))
    except ValueError as error:
        raise BadWeights(f"{bad} has a place that is no number") from error
    if length != declared or offset < 0 or offset + length > path.stat().st_size:
        raise BadWeights(
            f"{bad} declares {declared} bytes, and is {length} bytes at {offset} of {location[:200]!r}, "
            f"which has {path.stat().st_size}",
            check="fetch that file again",
        )
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)
