"""Segments of an imported graph, loaded and run. Only the process that computes uses this: it imports the
runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from safetensors import safe_open

from shoal.errors import BadWeights
from shoal.executor.arrays import Array
from shoal.models.graph.manifest import MANIFEST_FILE, GraphManifest, GraphWeight, read_graph_manifest
from shoal.models.graph.optimised import STRUCTURE, WEIGHT_TYPES, WEIGHTS_FILE
from shoal.models.graph.proto import uses
from shoal.models.graph.runtime import RUNTIME, run, session
from shoal.types import Span

ELEMENT_TYPES = {dtype: kind for kind, dtype in WEIGHT_TYPES.items()}


class LoadedSegments:
    """A span of a graph, ready to run: a session of the runtime for each segment."""

    def __init__(self, folder: Path, span: Span) -> None:
        """
        Raises:
            BadWeights: the files are not what the manifest says, or are for another version of the runtime.
        """
        self.manifest = read_graph_manifest((folder / MANIFEST_FILE).read_bytes())
        if self.manifest.runtime != RUNTIME:
            raise BadWeights(f"it was imported for {self.manifest.runtime}, and this is {RUNTIME}")
        structure = (folder / STRUCTURE).read_bytes()
        if hashlib.sha256(structure).hexdigest() != self.manifest.structure:
            raise BadWeights(f"{folder / STRUCTURE}: it is not what the manifest says")
        model = ModelProto.FromString(structure)
        weights = _Weights(folder / WEIGHTS_FILE, self.manifest)
        self._sessions = {
            index: _session(model, self.manifest, index, weights) for index in range(span.start, span.end)
        }

    def run(self, span: Span, taken: Mapping[int, Array]) -> dict[int, Array]:
        """What some of the loaded segments give, by the values' places in the manifest.

        Raises:
            Exception: whatever the runtime says, for tensors that the graph cannot use.
        """
        names = [value.name for value in self.manifest.values]
        there = dict(taken)
        for index in range(span.start, span.end):
            segment = self.manifest.segments[index]
            if segment.gives:
                inputs: dict[str, Any] = {names[value]: there[value] for value in segment.takes}
                given = run(self._sessions[index], [names[value] for value in segment.gives], inputs)
                there.update(zip(segment.gives, given, strict=True))
        return {value: np.asarray(there[value]) for value in self.manifest.gives(span)}


class _Weights:
    """The weights' file: each is read when a segment needs it, and checked."""

    def __init__(self, file: Path, manifest: GraphManifest) -> None:
        self._opened = safe_open(file, framework="np")
        self._known = {weight.name: weight for weight in manifest.weights}

    def get(self, name: str) -> TensorProto | None:
        known = self._known.get(name)
        if known is None:
            return None
        array: Array = self._opened.get_tensor(name)
        if not _is(array, known):
            raise BadWeights(f"weight {name[:80]!r} is not what the manifest says")
        return numpy_helper.from_array(array, name)


def _is(array: Array, known: GraphWeight) -> bool:
    same = array.dtype.name == known.dtype and array.shape == known.shape
    return same and hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() == known.sha256


def _session(
    model: ModelProto, manifest: GraphManifest, index: int, weights: _Weights
) -> ort.InferenceSession:
    segment = manifest.segments[index]
    nodes = model.graph.node[segment.first : segment.end]
    used = dict.fromkeys(name for node in nodes for name in uses(node))
    inline = {weight.name: weight for weight in model.graph.initializer}
    constants = [weight for name in used if (weight := inline.get(name) or weights.get(name)) is not None]
    values = [manifest.values[value] for value in segment.takes]
    # Types alone: how large what crosses is, each request says.
    inputs = [helper.make_tensor_value_info(v.name, ELEMENT_TYPES[v.dtype], None) for v in values]
    outputs = [ValueInfoProto(name=manifest.values[value].name) for value in segment.gives]
    graph = helper.make_graph(nodes, f"segment{index}", inputs, outputs, constants)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return session(part.SerializeToString(), manifest.threads)
