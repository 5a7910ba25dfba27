"""Bodies of the open inference protocol, version 2: JSON, and behind it the bytes of tensors. Pure.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, with Triton's extension
for binary tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from shoal.client.graph.known_graph import KnownGraph
from shoal.executor.arrays import Array
from shoal.gateway.errors import BadRequest, BodyTooLarge
from shoal.types import ArrayType

MAX_TENSOR_JSON = 8 << 20
"""Bytes of JSON, in which a number takes forty times its size in memory; tensors may follow it in binary."""
MAX_BINARY = 64 << 20
"""Bytes of a body with all of its tensors."""
MODEL_VERSION = "1"
DATATYPES: dict[ArrayType, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
DTYPES: dict[str, ArrayType] = {datatype: dtype for dtype, datatype in DATATYPES.items()}

Parameters = dict[str, Any]
TensorName = Annotated[str, Meta(min_length=1, max_length=1024)]


class InferInput(Struct):
    """One tensor of a request; its numbers are in ``data``, or behind the JSON."""

    name: TensorName
    datatype: str
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=1 << 31)]], Meta(max_length=8)]
    parameters: Parameters = {}
    data: Any = None


class InferOutput(Struct):
    """One tensor that is asked for."""

    name: TensorName
    parameters: Parameters = {}


class InferRequest(Struct):
    """What is asked of a graph; fields that we do not know are passed over."""

    inputs: Annotated[list[InferInput], Meta(max_length=64)]
    outputs: Annotated[list[InferOutput], Meta(max_length=64)] | None = None
    id: Annotated[str, Meta(max_length=256)] = ""
    parameters: Parameters = {}


_decoder = msgspec.json.Decoder(InferRequest)


def read_infer(body: bytes, header_size: int | None) -> tuple[InferRequest, dict[str, Array]]:
    """A request and its tensors by their names.

    Args:
        header_size: bytes of JSON that the body begins with, where tensors follow.

    Raises:
        BadRequest: it is not what the protocol says.
        BodyTooLarge: its JSON is.
    """
    size = len(body) if header_size is None else header_size
    if size > len(body):
        raise BadRequest(f"the body has {len(body)} bytes, and its header says {size} of JSON")
    if size > MAX_TENSOR_JSON:
        raise BodyTooLarge(
            f"{size} bytes of JSON; at most {MAX_TENSOR_JSON} are taken", check="send tensors in binary"
        )
    try:
        request = _decoder.decode(body[:size])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"not a request of the protocol: {str(error)[:300]}") from error
    rest = memoryview(body)[size:]
    tensors: dict[str, Array] = {}
    for tensor in request.inputs:
        if tensor.name in tensors:
            raise BadRequest(f"the input {tensor.name[:80]!r} comes twice")
        binary = tensor.parameters.get("binary_data_size")
        if binary is None:
            tensors[tensor.name] = _from_json(tensor)
        else:
            taken = binary if type(binary) is int and 0 <= binary <= len(rest) else None
            if taken is None:
                raise BadRequest(f"the input {tensor.name[:80]!r} says binary_data_size {str(binary)[:40]}")
            tensors[tensor.name], rest = _from_binary(tensor, rest[:taken]), rest[taken:]
    if rest:
        raise BadRequest(f"{len(rest)} bytes follow that no input takes")
    return request, tensors


def wanted_outputs(request: InferRequest, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs that were asked for, by default all.

    Raises:
        BadRequest: one that the graph does not give.
    """
    if not request.outputs:
        return dict(outputs)
    for output in request.outputs:
        if output.name not in outputs:
            raise BadRequest(
                f"the graph has no output {output.name[:80]!r}", check=f"choose of {', '.join(outputs)[:300]}"
            )
    return {output.name: outputs[output.name] for output in request.outputs}


def write_infer(name: str, request: InferRequest, outputs: Mapping[str, Array]) -> tuple[bytes, int | None]:
    """The answer's body, and how many bytes of it are JSON, where tensors follow.

    Raises:
        BadRequest: a number that JSON does not have.
    """
    default = bool(request.parameters.get("binary_data_output", False))
    binary = {
        output.name: bool(output.parameters.get("binary_data", default)) for output in request.outputs or ()
    }
    described: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for key, array in wanted_outputs(request, outputs).items():
        fields: dict[str, Any] = {
            "name": key,
            "datatype": DATATYPES[array.dtype.name],  # type: ignore[index]
            "shape": list(array.shape),
        }
        if binary.get(key, default):
            behind.append(np.ascontiguousarray(array).tobytes())
            fields["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            fields["data"] = array.ravel().tolist()
        described.append(fields)
    answer: dict[str, Any] = {"model_name": name, "model_version": MODEL_VERSION, "outputs": described}
    if request.id:
        answer["id"] = request.id
    try:
        head = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise BadRequest(
            "an output has numbers that JSON does not have (NaN or infinite)", check="ask for it in binary"
        ) from error
    return (head + b"".join(behind), len(head)) if behind else (head, None)


def metadata(graph: KnownGraph) -> dict[str, Any]:
    """What a graph takes and gives."""
    manifest = graph.manifest

    def described(places: tuple[int, ...]) -> list[dict[str, Any]]:
        values = [manifest.values[place] for place in places]
        return [
            {"name": v.name, "datatype": DATATYPES[v.dtype], "shape": list(v.shape or ())} for v in values
        ]

    return {
        "name": graph.name,
        "versions": [MODEL_VERSION],
        "platform": "onnx",
        "inputs": described(manifest.inputs),
        "outputs": described(manifest.outputs),
    }


def _dtype(tensor: InferInput) -> ArrayType:
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise BadRequest(
            f"the input {tensor.name[:80]!r} is of type {tensor.datatype[:20]!r}",
            check=f"send one of {', '.join(DTYPES)}",
        )
    return dtype


def _from_binary(tensor: InferInput, raw: memoryview) -> Array:
    dtype = _dtype(tensor)
    wanted = math.prod(tensor.shape) * np.dtype(dtype).itemsize
    if len(raw) != wanted:
        raise BadRequest(f"the input {tensor.name[:80]!r} has {len(raw)} bytes, and its shape takes {wanted}")
    flat = np.frombuffer(raw, np.uint8)
    array: Array = flat != 0 if dtype == "bool" else flat.copy().view(dtype)
    return _shaped(tensor, array)


def _from_json(tensor: InferInput) -> Array:
    """Numbers as they come, flat or as nested lists."""
    dtype = _dtype(tensor)
    try:
        found: Array = np.asarray(tensor.data)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"the input {tensor.name[:80]!r} holds no array: {str(error)[:100]}") from error
    kinds = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[np.dtype(dtype).kind]
    if found.size and found.dtype.kind not in kinds:
        raise BadRequest(f"the input {tensor.name[:80]!r} holds other things than {tensor.datatype}")
    if found.size != math.prod(tensor.shape):
        raise BadRequest(
            f"the input {tensor.name[:80]!r} has {found.size} numbers, and its shape takes "
            f"{math.prod(tensor.shape)}"
        )
    array = found.astype(dtype)
    if found.dtype.kind in "iu" and np.dtype(dtype).kind in "iu" and not np.array_equal(array, found):
        raise BadRequest(f"the input {tensor.name[:80]!r} has numbers that {tensor.datatype} does not hold")
    return _shaped(tensor, array)


def _shaped(tensor: InferInput, flat: Array) -> Array:
    try:
        return flat.reshape(tensor.shape)
    except ValueError as error:  # of no elements, and still too large to be counted
        raise BadRequest(
            f"the input {tensor.name[:80]!r} has a shape that no array has: {str(error)[:100]}"
        ) from error
