"""Segments of an imported graph, loaded and run. Only the process that computes uses this: it imports the
runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from shoal.errors import BadWeights
from shoal.executor.arrays import Array
from shoal.models.graph.items import STRUCTURE_ITEM, chunk_hashes, graph_items, graph_parts
from shoal.models.graph.linear import LinearGraph, find_linear_map
from shoal.models.graph.manifest import MANIFEST_FILE, STRUCTURE, GraphManifest, read_graph_manifest
from shoal.models.graph.optimised import WEIGHT_TYPES
from shoal.models.graph.proto import check_structure, uses
from shoal.models.graph.runtime import RUNTIME, fast_session, run, session
from shoal.types import Span

ELEMENT_TYPES = {dtype: kind for kind, dtype in WEIGHT_TYPES.items()}


KEPT_SPANS = 3
"""Of a fast node, its own span among them: each has weights of its own. Clients ask for parts of a span where
others serve the rest."""


class SpanSegments(Protocol):
    """A span of a graph, ready to run."""

    def run(self, span: Span, taken: Mapping[int, Array]) -> dict[int, Array]:
        """What some of its segments give, by the values' places in the manifest.

        Raises:
            Exception: whatever the runtime says, for tensors that the graph cannot use.
        """
        ...


def load_segments(folder: Path, span: Span, *, fast: bool = False) -> SpanSegments:
    """Load a span of an imported graph.

    Args:
        fast: optimise it by itself: its bits are no others' then.

    Raises:
        BadWeights: the files are not what the manifest says, or are for another version of the runtime.
    """
    return FastSegments(folder, span) if fast else LoadedSegments(folder, span)


class LoadedSegments:
    """A session of the runtime for each segment, run as it was optimised once."""

    def __init__(self, folder: Path, span: Span) -> None:
        """Raises BadWeights: as :func:`load_segments`."""
        imported = ImportedGraph(folder)
        self.manifest = imported.manifest
        self._sessions = {
            index: session(imported.part(Span(index, index + 1)), self.manifest.threads)
            for index in range(span.start, span.end)
        }

    def run(self, span: Span, taken: Mapping[int, Array]) -> dict[int, Array]:
        """See :class:`SpanSegments`."""
        names = [value.name for value in self.manifest.values]
        there = dict(taken)
        for index in range(span.start, span.end):
            segment = self.manifest.segments[index]
            if segment.gives:
                inputs: dict[str, Any] = {names[value]: there[value] for value in segment.takes}
                given = run(self._sessions[index], [names[value] for value in segment.gives], inputs)
                there.update(zip(segment.gives, given, strict=True))
        return {value: np.asarray(there[value]) for value in self.manifest.gives(span)}


class FastSegments:
    """One session of the runtime for all that is asked for at a time, optimised by itself."""

    def __init__(self, folder: Path, span: Span) -> None:
        """Raises BadWeights: as :func:`load_segments`."""
        self._imported = ImportedGraph(folder)
        self.manifest = self._imported.manifest
        self._own = span
        self._sessions: dict[Span, ort.InferenceSession] = {}
        self._session(span)

    def run(self, span: Span, taken: Mapping[int, Array]) -> dict[int, Array]:
        """See :class:`SpanSegments`."""
        gives = self.manifest.gives(span)
        if not gives:
            return {}
        names = [value.name for value in self.manifest.values]
        inputs: dict[str, Any] = {names[value]: taken[value] for value in self.manifest.takes(span)}
        given = run(self._session(span), [names[value] for value in gives], inputs)
        return {value: np.asarray(array) for value, array in zip(gives, given, strict=True)}

    def _session(self, span: Span) -> ort.InferenceSession:
        """That of a span; the one that was asked for longest ago makes room, but never the node's own."""
        found = self._sessions.pop(span, None)
        if found is None:
            if len(self._sessions) == KEPT_SPANS:
                del self._sessions[next(other for other in self._sessions if other != self._own)]
            found = fast_session(self._imported.part(span), self.manifest.threads)
        self._sessions[span] = found
        return found


class ImportedGraph:
    """The files of an imported graph, of which parts are made."""

    def __init__(self, folder: Path) -> None:
        self.manifest = read_graph_manifest((folder / MANIFEST_FILE).read_bytes())
        if self.manifest.runtime != RUNTIME:
            raise BadWeights(f"it was imported for {self.manifest.runtime}, and this is {RUNTIME}")
        structure = (folder / STRUCTURE).read_bytes()
        items = graph_items(self.manifest, b"").items
        if not items[STRUCTURE_ITEM].fits(chunk_hashes(structure)):
            raise BadWeights(f"{folder / STRUCTURE}: it is not what the manifest says")
        self._model = ModelProto.FromString(structure)
        check_structure(self._model, folder / STRUCTURE, {item.name for item in items[1:]})
        if len(self._model.graph.node) != self.manifest.segments[-1].end:
            raise BadWeights(f"{folder / STRUCTURE}: it has other nodes than the manifest says")
        self._inline = {weight.name: weight for weight in self._model.graph.initializer}
        self._weights = _Weights(folder, self.manifest)

    def part(self, span: Span) -> bytes:
        """The segments of a span as a graph of their own."""
        segments = self.manifest.segments
        nodes = self._model.graph.node[segments[span.start].first : segments[span.end - 1].end]
        used = dict.fromkeys(name for node in nodes for name in uses(node))
        constants = [weight for weight in map(self._constant, used) if weight is not None]
        values = [self.manifest.values[value] for value in self.manifest.takes(span)]
        # Types alone: how large what crosses is, each request says.
        inputs = [helper.make_tensor_value_info(v.name, ELEMENT_TYPES[v.dtype], None) for v in values]
        outputs = [ValueInfoProto(name=self.manifest.values[v].name) for v in self.manifest.gives(span)]
        graph = helper.make_graph(nodes, f"segments {span}", inputs, outputs, constants)
        made = helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        return made.SerializeToString()

    def linear(self) -> LinearGraph:
        """The linear map that the graph is.

        Raises:
            BadWeights: it is none, or another than its manifest says.
        """
        values = [self.manifest.values[value] for value in self.manifest.inputs]
        shapes = {value.name: value.shape for value in values if value.shape is not None}
        found = find_linear_map(self._model.graph, shapes, self._constant)
        if found is None or found.described != self.manifest.linear:
            raise BadWeights("it is not the linear map that its manifest says")
        return found

    def _constant(self, name: str) -> TensorProto | None:
        return self._inline.get(name) or self._weights.get(name)


class _Weights:
    """The files of the weights: each is read when a segment needs it, and checked."""

    def __init__(self, folder: Path, manifest: GraphManifest) -> None:
        self._manifest = manifest
        self._items = graph_items(manifest, b"").items
        self._places = {
            self._items[number].name: (folder / part.file, begin, number)
            for part in graph_parts(manifest)
            for number, begin in zip(part.items, part.begins, strict=True)
        }

    def get(self, name: str) -> TensorProto | None:
        found = self._places.get(name)
        if found is None:
            return None
        file, begin, number = found
        item, weight = self._items[number], self._manifest.weights[number - 1]
        with file.open("rb", buffering=0) as stream:
            stream.seek(begin)
            data = stream.read(item.size)
        if not item.fits(chunk_hashes(data)):
            raise BadWeights(f"weight {name[:80]!r} is not what the manifest says")
        array: Array = np.frombuffer(data, weight.dtype).reshape(weight.shape)
        return numpy_helper.from_array(array, name)
