from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from safetensors.numpy import load_file

from shoal.models.graph.graph_store import GraphStore, LocalGraph
from shoal.models.graph.optimised import STRUCTURE, WEIGHTS_FILE
from shoal.models.graph.runtime import run, session
from shoal.testing.graphs import GRAPHS, NamedArrays

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


def whole(graph: LocalGraph, inputs: NamedArrays) -> dict[str, np.ndarray[Any, Any]]:
    """What the uncut graph gives, as it was optimised: one session of the runtime, in this process."""
    model = ModelProto.FromString((graph.folder / STRUCTURE).read_bytes())
    weights = load_file(graph.folder / WEIGHTS_FILE)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    names = [value.name for value in model.graph.output]
    given = run(session(model.SerializeToString(), graph.manifest.threads), names, inputs)
    return dict(zip(names, given, strict=True))


def as_the_author_runs_it(file: Path, inputs: NamedArrays) -> list[np.ndarray[Any, Any]]:
    """What the file gives without us."""
    import onnxruntime

    outputs = [value.name for value in onnx.load(file).graph.output]
    return list(onnxruntime.InferenceSession(file).run(outputs, inputs))


def same(one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]]) -> bool:
    """Whether all arrays are the same, bit for bit."""
    return one.keys() == other.keys() and all(
        a.dtype == other[name].dtype and a.shape == other[name].shape and a.tobytes() == other[name].tobytes()
        for name, a in one.items()
    )
