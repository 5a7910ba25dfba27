"""Graphs that are one linear map of each row, such as linear and logistic regression: found, and made a
matrix.

Products, sums with constants and what else is linear are multiplied together, in float64. What is not may
only come last: it is left to who asked. Imports onnx, as the processes do that import or load graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from shoal.models.graph.manifest import (
    MAX_COLUMNS,
    MAX_FINALS,
    MAX_PRODUCTS,
    MAX_SCORES,
    FinalOperator,
    LinearMap,
)

LARGEST_CONSTANT = 1 << 22
"""Elements. A graph with a larger one is not looked at: no linear map between so few numbers has that."""
LARGEST_WEIGHT = 2.0**100
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
FINAL_OPERATORS = ("Sigmoid", "Softmax", "Normalizer", "ArgMax")
LAST = (-1, 1)
"""The axis of a row's numbers."""
TRANSFORMS: dict[bytes, tuple[FinalOperator, ...]] = {
    b"NONE": (),
    b"LOGISTIC": ("sigmoid",),
    b"SOFTMAX": ("softmax",),
}

_Matrix = npt.NDArray[np.float64]
Constants = Callable[[str], TensorProto | None]


@dataclass(frozen=True, slots=True)
class LinearGraph:
    """A graph that is a linear map."""

    described: LinearMap
    matrix: _Matrix
    """Scores × columns and one more: what is added whatever the row is."""


@dataclass(frozen=True, slots=True)
class _Value:
    """What a row has become at some place of the graph."""

    matrix: _Matrix
    """Numbers × columns and one more."""
    finals: tuple[FinalOperator, ...] = ()
    """What was done after the linear map."""


class _NotLinear(Exception):
    """The graph is something else, or too large."""


def find_linear_map(
    graph: GraphProto, shapes: Mapping[str, Sequence[int]], constants: Constants
) -> LinearGraph | None:
    """The linear map that a graph is, or ``None``.

    Args:
        shapes: of the graph's input, by its name: -1 is any size.
        constants: a constant of the graph, by its name.
    """
    try:
        with np.errstate(all="ignore"):  # what comes of infinite constants is looked at in the end
            return _Walk(graph, shapes, constants).found()
    except _NotLinear:
        return None


class _Walk:
    """Follows a graph's rows from node to node."""

    def __init__(self, graph: GraphProto, shapes: Mapping[str, Sequence[int]], constants: Constants) -> None:
        self._graph = graph
        self._constants = constants
        if len(graph.input) != 1:
            raise _NotLinear
        (value,) = graph.input
        shape = shapes.get(value.name, ())
        kind = value.type.tensor_type.elem_type
        if kind not in FLOATS or len(shape) != 2 or not 1 <= shape[1] <= MAX_COLUMNS:
            raise _NotLinear
        self._known = {value.name: _Value(np.eye(shape[1], shape[1] + 1))}

    def found(self) -> LinearGraph:
        """Raises _NotLinear."""
        for node in self._graph.node:
            made = self._after(node)
            if len(node.output) != len(made):
                raise _NotLinear
            self._known.update(zip(node.output, made, strict=True))
        outputs = [self._known.get(value.name) for value in self._graph.output]
        first = outputs[0]
        if first is None:
            raise _NotLinear
        scores, columns = first.matrix.shape[0], first.matrix.shape[1] - 1
        if scores > MAX_SCORES or scores * columns > MAX_PRODUCTS:
            raise _NotLinear
        if not np.all(np.abs(first.matrix) <= LARGEST_WEIGHT):  # NaN is no less than anything
            raise _NotLinear
        finals: list[tuple[FinalOperator, ...]] = []
        for output in outputs:
            if output is None or output.matrix is not first.matrix:
                raise _NotLinear
            finals.append(output.finals)
        return LinearGraph(LinearMap(columns, scores, tuple(finals)), first.matrix)

    def _after(self, node: NodeProto) -> list[_Value]:
        """What a node gives. Raises _NotLinear."""
        taken = [self._known[name] for name in node.input if name in self._known]
        if len(taken) != 1 or len(node.input) > 3:
            raise _NotLinear
        (value,) = taken
        said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Identity":
            return [value]
        if node.op_type in FINAL_OPERATORS:
            return [_final(node.op_type, value, said)]
        if value.finals:
            raise _NotLinear
        if node.op_type == "LinearClassifier":
            return _classified(value, said)
        return [self._linear(node, value, said)]

    def _linear(self, node: NodeProto, value: _Value, said: Mapping[str, Any]) -> _Value:
        matrix, first = value.matrix, node.input[0] in self._known
        match node.op_type:
            case "MatMul" if first:
                return _Value(_product(self._constant(node.input[1]).T, matrix))
            case "Gemm" | "FusedGemm" if first and not said.get("transA", 0):
                return self._gemm(node, matrix, said)
            case "Scaler" if first:
                moved = _added(matrix, -_numbers(said.get("offset", [0.0])))
                return _Value(_scaled(moved, _numbers(said.get("scale", [1.0]))))
            case "LinearRegressor" if first and said.get("post_transform", b"NONE") == b"NONE":
                return _Value(_regressed(matrix, said, said.get("targets", 1)))
            case "Add" | "Sub" | "Mul" | "Div" if len(node.input) == 2 and not said:
                return _Value(_with_constant(node.op_type, matrix, self._constant(node.input[first]), first))
            case _:
                raise _NotLinear

    def _gemm(self, node: NodeProto, matrix: _Matrix, said: Mapping[str, Any]) -> _Value:
        weights = self._constant(node.input[1])
        made = said.get("alpha", 1.0) * _product(weights if said.get("transB", 0) else weights.T, matrix)
        if len(node.input) > 2 and node.input[2]:
            made = _added(made, said.get("beta", 1.0) * self._constant(node.input[2]))
        match said.get("activation"):  # of the runtime's own, which fuses what follows
            case None:
                return _Value(made)
            case b"Sigmoid":
                return _Value(made, ("sigmoid",))
            case _:
                raise _NotLinear

    def _constant(self, name: str) -> _Matrix:
        found = self._constants(name)
        if found is None or found.data_type not in FLOATS or np.prod(found.dims) > LARGEST_CONSTANT:
            raise _NotLinear
        return numpy_helper.to_array(found).astype(np.float64)


def _final(kind: str, value: _Value, said: Mapping[str, Any]) -> _Value:
    """What an operator makes of a row by itself, if it may come after a linear map. Raises _NotLinear."""
    if len(value.finals) == MAX_FINALS or (value.finals and value.finals[-1].startswith("argmax")):
        raise _NotLinear
    match kind:
        case "ArgMax" if said.get("axis", 0) in LAST and not said.get("select_last_index", 0):
            final: FinalOperator = "argmax_kept" if said.get("keepdims", 1) else "argmax"
        case "Softmax" if said.get("axis", -1) in LAST:
            final = "softmax"
        case "Normalizer" if said.get("norm", b"MAX") == b"L1":
            final = "l1"
        case "Sigmoid":
            final = "sigmoid"
        case _:
            raise _NotLinear
    return replace(value, finals=(*value.finals, final))


def _classified(value: _Value, said: Mapping[str, Any]) -> list[_Value]:
    """The likeliest class, and what is made of the scores of all, of which there is one for each class."""
    classes: list[int] = said.get("classlabels_ints", [])
    finals = TRANSFORMS.get(said.get("post_transform", b"NONE"))
    if finals is None or len(classes) < 2 or classes != list(range(len(classes))):
        raise _NotLinear
    scores = _regressed(value.matrix, said, len(classes))
    return [_Value(scores, ("argmax",)), _Value(scores, finals)]


def _regressed(matrix: _Matrix, said: Mapping[str, Any], count: int) -> _Matrix:
    """So many scores, by weights that are written in their node."""
    weights = _numbers(said.get("coefficients", []))
    if count < 1 or weights.size != count * len(matrix):
        raise _NotLinear
    return _added(_product(weights.reshape(count, -1), matrix), _numbers(said.get("intercepts", [0.0])))


def _product(weights: _Matrix, matrix: _Matrix) -> _Matrix:
    if weights.ndim != 2 or weights.shape[1] != len(matrix):
        raise _NotLinear
    return weights @ matrix


def _with_constant(kind: str, matrix: _Matrix, constant: _Matrix, first: bool) -> _Matrix:
    match kind:
        case "Add":
            return _added(matrix, constant)
        case "Sub":
            return _added(matrix, -constant) if first else _added(-matrix, constant)
        case "Mul":
            return _scaled(matrix, constant)
        case _ if first and np.all(constant != 0):
            return _scaled(matrix, 1 / constant)
        case _:
            raise _NotLinear


def _added(matrix: _Matrix, constant: _Matrix) -> _Matrix:
    made = matrix.copy()
    made[:, -1] += _of_each(constant, matrix)
    return made


def _scaled(matrix: _Matrix, constant: _Matrix) -> _Matrix:
    return matrix * _of_each(constant, matrix)[:, None]


def _of_each(constant: _Matrix, matrix: _Matrix) -> _Matrix:
    """A constant as a number for each of a row: one for all, or one for each."""
    if any(size != 1 for size in constant.shape[:-1]) or constant.ndim > 2:
        raise _NotLinear
    numbers = constant.reshape(-1)
    if numbers.size not in (1, len(matrix)):
        raise _NotLinear
    return np.broadcast_to(numbers, (len(matrix),))


def _numbers(given: Sequence[float]) -> _Matrix:
    return np.asarray(given, np.float64)
