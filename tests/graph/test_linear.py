"""Which graphs are one linear map of each row, and what that map is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shoal.client.graph.encryptable import linear_outputs
from shoal.errors import BadWeights
from shoal.executor.graph.segments import ImportedGraph
from shoal.models.graph.graph_store import GraphStore, LocalGraph
from shoal.models.graph.linear import LinearGraph, find_linear_map
from shoal.models.graph.manifest import (
    MAX_COLUMNS,
    LinearMap,
    read_graph_manifest,
    write_graph_manifest,
)
from shoal.testing.graph_bits import whole
from shoal.testing.graphs import GraphWriter, floats, write_linear

from .conftest import Imported


def found(model: ModelProto, columns: int) -> LinearGraph | None:
    weights = {weight.name: weight for weight in model.graph.initializer}
    return find_linear_map(model.graph, {"x": (-1, columns)}, weights.get)


def of(build: Any, columns: int = 3) -> LinearGraph | None:
    at = GraphWriter()
    build(at)
    return found(at.model([floats("x", "n", columns)], [floats("y", "n", 2)]), columns)


def numbers(at: GraphWriter, *values: float) -> str:
    return at.constant(np.array(values, np.float32))


@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        ({}, (("sigmoid",),)),
        ({"hidden": 16, "scores": 4, "final": "Softmax"}, (("softmax",), ("softmax", "argmax"))),
        ({"final": "", "scores": 2}, ((),)),
    ],
)
def test_an_imported_graph_says_that_it_is_linear_and_gives_its_matrix(
    options: dict[str, Any], outputs: tuple[tuple[str, ...], ...], tmp_path: Path
) -> None:
    graph = GraphStore(tmp_path / "graphs").resolve(str(write_linear(tmp_path / "model.onnx", **options)))
    linear = ImportedGraph(graph.folder).linear()
    assert graph.manifest.linear == linear.described
    assert (linear.described.columns, linear.described.outputs) == (30, outputs)
    if options.get("final") == "":
        rows = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
        scores = np.hstack([rows, np.ones((5, 1))]) @ linear.matrix.T
        assert np.allclose(scores, whole(graph, {"features": rows})["scores"], atol=1e-5)


def test_another_graph_says_nothing_and_keeps_its_digest(imported: Imported) -> None:
    graph = imported("mlp")
    assert graph.manifest.linear is None
    assert b'"linear"' not in graph.raw
    with pytest.raises(BadWeights, match="not the linear map"):
        ImportedGraph(graph.folder).linear()


def test_constants_are_added_multiplied_and_scaled_as_their_operators_say() -> None:
    def build(at: GraphWriter) -> None:
        x = at.add("Sub", "x", numbers(at, 1, 2, 3))
        x = at.add("Div", at.add("Mul", numbers(at, 2), x), numbers(at, 1, 4, 8))
        x = at.add("Scaler", x, offset=[0.5], scale=[1.0, 2.0, 1.0], domain="ai.onnx.ml")
        x = at.add("Sub", numbers(at, 1), at.add("Identity", x))
        at.add("Gemm", x, at.constant(np.eye(3, 2, dtype=np.float32)), alpha=3.0, output="y")

    linear = of(build)
    assert linear is not None
    # y = 3 · (1 - (2 · (x - c) / d - 0.5) · s) of the first two columns
    assert linear.matrix.tolist() == [[-6, 0, 0, 10.5], [0, -3, 0, 12]]


def test_a_regressor_of_the_operators_for_classical_models_is_linear() -> None:
    def build(at: GraphWriter) -> None:
        fields = {"coefficients": [1.0, 2, 3, 4, 5, 6], "intercepts": [7.0, 8], "targets": 2}
        at.add("LinearRegressor", "x", output="y", domain="ai.onnx.ml", **fields)

    linear = of(build)
    assert linear is not None and linear.matrix.tolist() == [[1, 2, 3, 7], [4, 5, 6, 8]]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_logistic_regression_of_scikit_learn_is_linear(classes: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((90, 4)).astype(np.float32)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, np.arange(90) % classes)
    file = tmp_path / "sklearn.onnx"
    file.write_bytes(to_onnx(model, rows[:1], options={"zipmap": False}).SerializeToString())
    graph = GraphStore(tmp_path / "graphs").resolve(str(file))
    linear = ImportedGraph(graph.folder).linear()
    scores = np.hstack([rows, np.ones((90, 1))]) @ linear.matrix.T
    outputs = linear_outputs(graph.manifest, linear.described, scores)
    expected = whole(graph, {"X": rows})
    assert np.array_equal(outputs["label"], expected["label"])
    assert np.allclose(outputs["probabilities"], expected["probabilities"], atol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda at: at.add("Relu", at.add("MatMul", "x", at.weight(3, 2)), output="y"),
        lambda at: at.add("FusedGemm", "x", at.weight(3, 2), activation="Relu", output="y"),
        lambda at: at.add("Gemm", at.weight(2, 3), "x", output="y"),
        lambda at: at.add("MatMul", at.add("Sigmoid", "x"), at.weight(3, 2), output="y"),
        lambda at: at.add("Mul", "x", "x", output="y"),
        lambda at: at.add("Add", "x", at.weight(7, 3), output="y"),
        lambda at: at.add("Div", "x", numbers(at, 0), output="y"),
        lambda at: at.add("MatMul", "x", at.weight(4, 2), output="y"),
        lambda at: at.add("Softmax", at.add("MatMul", "x", at.weight(3, 2)), axis=0, output="y"),
        lambda at: at.add("ArgMax", at.add("MatMul", "x", at.weight(3, 2)), output="y"),
        lambda at: at.add("Mul", "x", numbers(at, np.inf), output="y"),
        lambda at: at.add("MatMul", "x", at.weight(3, 65), output="y"),
        lambda at: at.add("Identity", "elsewhere", output="y"),
        lambda at: at.add("Normalizer", "x", output="y", norm="L2"),
        lambda at: at.add("LinearRegressor", "x", output="y", coefficients=[1.0, 2.0], targets=1),
        lambda at: at.add("LinearRegressor", "x", output="y", coefficients=[1.0], targets=0),
        lambda at: at.add(
            "LinearClassifier", "x", output="y", coefficients=[1.0] * 6, classlabels_ints=[3, 5]
        ),
    ],
)
def test_what_is_not_linear_or_too_large_is_none(build: Any) -> None:
    assert of(build) is None


def test_rows_that_are_too_long_or_of_integers_are_none() -> None:
    at = GraphWriter()
    at.add("MatMul", "x", at.weight(MAX_COLUMNS + 1, 1), output="y")
    assert (
        found(at.model([floats("x", "n", MAX_COLUMNS + 1)], [floats("y", "n", 1)]), MAX_COLUMNS + 1) is None
    )
    whole_numbers = helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 3])
    assert found(GraphWriter().model([whole_numbers], [floats("x", "n", 3)]), 3) is None


@pytest.mark.parametrize(
    ("linear", "why"),
    [
        (LinearMap(30, 1, ((), ())), "other inputs or outputs"),
        (LinearMap(512, 64, ((),)), "32768"),
        (LinearMap(513, 1, ((),)), "513|512"),
        (LinearMap(30, 1, (("sigmoid",) * 5,)), "length"),
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused(
    linear: LinearMap, why: str, logistic: LocalGraph
) -> None:
    wrong = msgspec.structs.replace(logistic.manifest, linear=linear)
    with pytest.raises(BadWeights, match=why):
        read_graph_manifest(write_graph_manifest(wrong))
