"""What a graph gives uncut, and whether two answers are the same bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper
from onnxruntime import InferenceSession

from shoal.models.graph.graph_store import LocalGraph
from shoal.models.graph.items import graph_parts
from shoal.models.graph.manifest import STRUCTURE
from shoal.models.graph.runtime import run, session
from shoal.testing.graphs import NamedArrays


def whole_session(graph: LocalGraph) -> InferenceSession:
    """The uncut graph, as it was optimised: one session of the runtime, in this process."""
    model = ModelProto.FromString((graph.folder / STRUCTURE).read_bytes())
    for part in graph_parts(graph.manifest):
        data = (graph.folder / part.file).read_bytes()
        for item, begin in zip(part.items, part.begins, strict=True):
            weight = graph.manifest.weights[item - 1]
            array = np.frombuffer(data[begin : begin + weight.size], weight.dtype).reshape(weight.shape)
            model.graph.initializer.append(numpy_helper.from_array(array, weight.name))
    return session(model.SerializeToString(), graph.manifest.threads)


def run_whole(uncut: InferenceSession, inputs: NamedArrays) -> NamedArrays:
    """What it gives, by name."""
    names = [value.name for value in uncut.get_outputs()]
    return dict(zip(names, run(uncut, names, inputs), strict=True))


def whole(graph: LocalGraph, inputs: NamedArrays) -> NamedArrays:
    """What the uncut graph gives."""
    return run_whole(whole_session(graph), inputs)


def same(one: Mapping[str, np.ndarray[Any, Any]], other: Mapping[str, np.ndarray[Any, Any]]) -> bool:
    """Whether all arrays are the same, bit for bit."""
    return one.keys() == other.keys() and all(
        a.dtype == other[name].dtype and a.shape == other[name].shape and a.tobytes() == other[name].tobytes()
        for name, a in one.items()
    )
