"""What makes a graph that graph: the hash of its manifest is its digest.

The bits that come out depend on the runtime's version and on its number of threads, so both are in it. A
client needs nothing but the manifest: which values each segment takes and gives is written there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from shoal.errors import BadWeights
from shoal.models.checkpoint.parts import MANIFEST
from shoal.models.graph.preprocess import MAX_TEXT
from shoal.types import ARRAY_BYTES, ArrayType, Digest, ModelShape, Numerics, Span

GRAPH_VERSION = 2
MAX_SEGMENTS = 64
MAX_CROSSING = 64
"""Values that a span takes or gives at a time: all of them travel in one message."""
MANIFEST_FILE = MANIFEST
STRUCTURE = "graph.onnx"
"""The optimised graph without its weights, in the folder of one that was imported."""
MAX_GRAPH_MANIFEST = 16 << 20
"""Bytes; a graph of 1,000 weights has 150 kB."""
MAX_RANK = 8
MAX_GRAPH = 1 << 31
"""Bytes of a graph with all its weights: none that is read has more."""
MAX_COLUMNS = 512
"""Numbers in a row of a linear graph, each of which is a ciphertext where rows are encrypted."""
MAX_SCORES = 64
"""Numbers that a linear graph makes of a row."""
MAX_PRODUCTS = 1 << 14
"""Products of a ciphertext and a weight in one request: some seconds."""

GRAPH_NUMERICS = Numerics("fp32", "auto", "any")
"""What nodes of graphs announce: how a graph is computed its manifest says, but for the kind of CPU."""
FAST_NUMERICS = Numerics("fp32", "auto", "fast")
"""The same of those who optimise their part of it by itself: other bits, for each cut others."""

MAX_FINALS = 4
"""Operators that may follow a linear map."""
FinalOperator = Literal["sigmoid", "softmax", "l1", "argmax", "argmax_kept"]
"""What may follow a linear map. ``l1`` divides a row by the sum of its absolute values; ``argmax_kept`` keeps
the axis along which it looks."""

_Name = Annotated[str, Meta(min_length=1, max_length=1024)]
_Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Dimension = Annotated[int, Meta(ge=-1, le=1 << 31)]
_Place = Annotated[int, Meta(ge=0, lt=1 << 16)]
_Places = Annotated[tuple[_Place, ...], Meta(max_length=MAX_CROSSING)]


def graph_numerics(*, fast: bool) -> Numerics:
    """How the hops of a request compute: all of them like this."""
    return FAST_NUMERICS if fast else GRAPH_NUMERICS


class GraphValue(Struct, frozen=True, array_like=True):
    """A tensor that goes into the graph, comes out of it, or crosses from one segment into another."""

    name: _Name
    dtype: ArrayType
    shape: Annotated[tuple[_Dimension, ...], Meta(max_length=MAX_RANK)] | None
    """With -1 for a size that each request may choose; ``None`` where not even the rank is known."""


class GraphWeight(Struct, frozen=True, array_like=True):
    """A constant tensor, which is stored by itself."""

    name: _Name
    dtype: ArrayType
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 40)], ...], Meta(max_length=MAX_RANK)]
    sha256: _Sha256
    """Of its chunks' sha256s: see :mod:`shoal.models.graph.items`."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * ARRAY_BYTES[self.dtype]


class GraphSegment(Struct, frozen=True, array_like=True):
    """Nodes ``[first, end)`` of the graph's order: what a language model's block is to it."""

    first: Annotated[int, Meta(ge=0, le=1 << 20)]
    end: Annotated[int, Meta(ge=1, le=1 << 20)]
    cost: Annotated[int, Meta(ge=0)]
    """An estimate of its arithmetic, in operations."""
    weight_bytes: Annotated[int, Meta(ge=0, le=1 << 40)]
    takes: _Places
    """The values from before that its nodes use, by their places in ``values``."""
    gives: _Places
    """The values that it makes and others use, or that the graph gives."""
    weights: Annotated[tuple[Annotated[int, Meta(ge=0, lt=1 << 17)], ...], Meta(max_length=1 << 17)] = ()
    """Those that its nodes use, by their places in the manifest's ``weights``."""


class LinearMap(Struct, frozen=True, array_like=True):
    """What a graph is that is one linear map of each row of its input: it can be run on encrypted rows."""

    columns: Annotated[int, Meta(ge=1, le=MAX_COLUMNS)]
    """Numbers in a row."""
    scores: Annotated[int, Meta(ge=1, le=MAX_SCORES)]
    """Numbers that the map makes of it."""
    outputs: Annotated[
        tuple[Annotated[tuple[FinalOperator, ...], Meta(max_length=MAX_FINALS)], ...],
        Meta(min_length=1, max_length=MAX_CROSSING),
    ]
    """For each output of the graph, what is done with the scores, in order."""


class GraphManifest(Struct, frozen=True, omit_defaults=True):
    """All that decides what a graph computes, and how it is cut."""

    version: Literal[2]
    kind: Literal["graph"]
    runtime: Annotated[str, Meta(max_length=64)]
    """What computes it, with its version, for example ``onnxruntime 1.32.0``."""
    threads: Annotated[int, Meta(ge=1, le=1024)]
    """How many threads compute a segment."""
    structure: _Sha256
    """Of the optimised graph without its weights: of its chunks' sha256s, as of each weight."""
    weights: Annotated[tuple[GraphWeight, ...], Meta(max_length=1 << 17)]
    values: Annotated[tuple[GraphValue, ...], Meta(min_length=1, max_length=1 << 13)]
    inputs: _Places
    outputs: Annotated[tuple[_Place, ...], Meta(min_length=1, max_length=MAX_CROSSING)]
    segments: Annotated[tuple[GraphSegment, ...], Meta(min_length=1, max_length=MAX_SEGMENTS)]
    preprocess: Annotated[str, Meta(max_length=MAX_TEXT)] = ""
    """How pictures become its inputs, as its author says it: :class:`Preprocess`, written."""
    structure_size: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    """Bytes of the optimised graph without its weights."""
    linear: LinearMap | None = None
    """Where the graph is one: :mod:`shoal.models.graph.linear` finds it out."""

    @property
    def work(self) -> list[float]:
        """Of each segment, in shares of a usual one; never nothing at all."""
        costs = [max(1, segment.cost) for segment in self.segments]
        return [cost * len(costs) / sum(costs) for cost in costs]

    def takes(self, span: Span) -> list[int]:
        """The values that a span takes, by their places in ``values``."""
        made: set[int] = set()
        found: dict[int, None] = {}
        for segment in self.segments[span.start : span.end]:
            found.update(dict.fromkeys(value for value in segment.takes if value not in made))
            made.update(segment.gives)
        return list(found)

    def gives(self, span: Span) -> list[int]:
        """The values that a span makes and that are used after it, or come out of the graph."""
        wanted = {value for segment in self.segments[span.end :] for value in segment.takes}
        wanted.update(self.outputs)
        made = (value for segment in self.segments[span.start : span.end] for value in segment.gives)
        return [value for value in made if value in wanted]

    def shape(self, name: str, digest: Digest) -> ModelShape:
        """The graph as routing sees it."""
        return ModelShape(name, digest, len(self.segments), 1, 1, 1, "graph")


def misfit(value: GraphValue, dtype: str, shape: Sequence[int]) -> str | None:
    """Why a tensor cannot be that value of a graph; ``None`` if it can."""
    if dtype != value.dtype:
        return f"{value.name[:80]!r} is of {value.dtype}, not of {dtype}"
    wanted = value.shape
    if wanted is None or (
        len(wanted) == len(shape) and all(w in (-1, s) for w, s in zip(wanted, shape, strict=True))
    ):
        return None
    return f"{value.name[:80]!r} has the shape {sizes_text(wanted)}, not {sizes_text(shape)}"


def sizes_text(shape: Sequence[int]) -> str:
    """A shape for people, for example ``any×3×224×224``."""
    return "×".join("any" if size < 0 else str(size) for size in shape) or "of a single number"


_read = msgspec.json.Decoder(GraphManifest)


def write_graph_manifest(manifest: GraphManifest) -> bytes:
    """The manifest as it is hashed, stored and sent."""
    return msgspec.json.encode(manifest)


def graph_digest(raw: bytes) -> Digest:
    """The digest of the graph that has this manifest."""
    return Digest(f"sha256:{hashlib.sha256(raw).hexdigest()}")


class _Kind(Struct):
    kind: str = ""


def is_graph_manifest(raw: bytes) -> bool:
    """Whether a manifest says that it is a graph's: those of language models say nothing."""
    try:
        return msgspec.json.decode(raw, type=_Kind).kind == "graph"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def read_graph_manifest(raw: bytes) -> GraphManifest:
    """Read a manifest that a stranger wrote.

    Raises:
        BadWeights: it is none, is too large, or says what cannot be.
    """
    if len(raw) > MAX_GRAPH_MANIFEST:
        raise _bad(f"it has {len(raw)} bytes, and {MAX_GRAPH_MANIFEST} are read")
    try:
        manifest = _read.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(str(error)[:200]) from error
    _check(manifest)
    return manifest


def _check(manifest: GraphManifest) -> None:
    """Every value is there before it is taken, is made once, and what goes at a time fits into one
    message."""
    count = len(manifest.values)
    there = set(manifest.inputs)
    at = 0
    for segment in manifest.segments:
        if segment.first != at or segment.end <= segment.first:
            raise _bad(f"its segments do not follow one another at node {at}")
        at = segment.end
        if not there.issuperset(segment.takes) or there.intersection(segment.gives):
            raise _bad("a segment takes what is not there, or makes what is")
        if len(set(segment.gives)) < len(segment.gives):
            raise _bad("a segment makes a value twice")
        there.update(segment.gives)
    if max(there, default=0) >= count or not there.issuperset(manifest.outputs):
        raise _bad("it names a value that it does not describe, or that nobody makes")
    names = [value.name for value in manifest.values]
    if len(set(names)) < len(names):
        raise _bad("two of its values have one name")
    made = dict.fromkeys(manifest.inputs, 0)
    used = dict.fromkeys(manifest.outputs, len(manifest.segments))
    for index, segment in enumerate(manifest.segments):
        made.update(dict.fromkeys(segment.gives, index + 1))
        used.update({value: max(index, used.get(value, 0)) for value in segment.takes})
    for boundary in range(len(manifest.segments) + 1):
        crossing = sum(made[value] <= boundary <= until for value, until in used.items())
        if crossing > MAX_CROSSING:
            raise _bad(f"{crossing} values cross where {MAX_CROSSING} may")
    _check_weights(manifest)
    _check_linear(manifest)


def _check_weights(manifest: GraphManifest) -> None:
    """All of it is no larger than a graph can be; every weight is of some segment, and of one name; and each
    segment's bytes are those of its weights."""
    if not manifest.structure_size:
        raise _bad("it has no graph")
    names = {weight.name for weight in manifest.weights}
    if len(names) < len(manifest.weights):
        raise _bad("two of its weights have one name")
    total = manifest.structure_size + sum(weight.size for weight in manifest.weights)
    if total > MAX_GRAPH:
        raise _bad(f"it has {total} bytes with its weights, and {MAX_GRAPH} are the most")
    used: set[int] = set()
    for segment in manifest.segments:
        if max(segment.weights, default=0) >= max(1, len(manifest.weights)):
            raise _bad("a segment uses a weight that is not there")
        if len(set(segment.weights)) < len(segment.weights):
            raise _bad("a segment uses a weight twice")
        if sum(manifest.weights[weight].size for weight in segment.weights) != segment.weight_bytes:
            raise _bad("a segment's weights have other bytes than it says")
        used.update(segment.weights)
    if len(used) < len(manifest.weights):
        raise _bad(f"{len(manifest.weights) - len(used)} of its weights are of no segment")


def _check_linear(manifest: GraphManifest) -> None:
    """A linear graph has one input, and says of every output what it is."""
    linear = manifest.linear
    if linear is None:
        return
    if len(manifest.inputs) != 1 or len(linear.outputs) != len(manifest.outputs):
        raise _bad("it is linear, and has other inputs or outputs")
    if linear.columns * linear.scores > MAX_PRODUCTS:
        raise _bad(
            f"{linear.columns * linear.scores} products of a linear graph; {MAX_PRODUCTS} are the most"
        )


def _bad(what: str) -> BadWeights:
    return BadWeights(f"a graph's manifest: {what}", check="use a graph from peers that you trust")
