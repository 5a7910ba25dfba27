"""The files of an imported graph: what lies in which, and as which items it goes from peer to peer.

As of a model, an item is hashed in chunks of 1 MiB, each of which can be checked by itself. The first item
is the graph without its weights; the others are those, and all that the same segments use lie in one file. So
a span's weights are whole files, the same ones on every machine that has the manifest.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from shoal.models.checkpoint.manifest import CHUNK, Manifest, ManifestItem
from shoal.models.checkpoint.parts import CHUNKS, ModelPart
from shoal.models.graph.manifest import STRUCTURE, GraphManifest
from shoal.types import Span

STRUCTURE_ITEM = 0


def chunk_hashes(data: bytes | memoryview) -> bytes:
    """The sha256s of the chunks of an item."""
    view = memoryview(data)
    return b"".join(
        hashlib.sha256(view[begin : begin + CHUNK]).digest() for begin in range(0, len(view), CHUNK)
    )


def graph_items(manifest: GraphManifest, raw: bytes) -> Manifest:
    """A graph as what peers send: by its manifest, and its bytes."""
    items = [ManifestItem(STRUCTURE, manifest.structure_size, manifest.structure)]
    items += [
        ManifestItem(weight.name, weight.size, weight.sha256, weight.dtype, weight.shape)
        for weight in manifest.weights
    ]
    return Manifest(raw, {}, tuple(items), tuple(accumulate((item.chunks for item in items), initial=0)))


def graph_parts(manifest: GraphManifest) -> list[ModelPart]:
    """How a graph's weights are spread over files: the bytes of one after those of the other."""
    users: defaultdict[int, list[int]] = defaultdict(list)
    for index, segment in enumerate(manifest.segments):
        for weight in segment.weights:
            users[weight].append(index)
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for weight in range(len(manifest.weights)):
        groups[tuple(users[weight])].append(weight)
    parts: list[ModelPart] = []
    for number, (_, weights) in enumerate(sorted(groups.items())):
        begins = list(accumulate((manifest.weights[weight].size for weight in weights), initial=0))
        members = tuple(1 + weight for weight in weights)
        parts.append(ModelPart(f"weights-{number:05}.bin", b"", members, tuple(begins[:-1]), begins[-1]))
    return parts


def span_items(manifest: GraphManifest, span: Span) -> list[int]:
    """The items that a node needs which serves a span."""
    segments = manifest.segments[span.start : span.end]
    return [STRUCTURE_ITEM, *sorted({1 + weight for segment in segments for weight in segment.weights})]


def missing_graph_items(folder: Path, manifest: GraphManifest, items: Sequence[int]) -> list[int]:
    """Those of some items whose file is not here."""
    file_of = {item: part.file for part in graph_parts(manifest) for item in part.items}
    file_of[STRUCTURE_ITEM] = STRUCTURE
    here = {file: (folder / file).is_file() for file in set(file_of.values())}
    return [item for item in items if not here[file_of[item]]]


def write_parts(
    folder: Path, manifest: GraphManifest, bytes_of: Mapping[str, memoryview], hashes: Sequence[bytes]
) -> None:
    """Write a graph's weights, and the hashes of all chunks.

    Args:
        bytes_of: each weight's, by its name.
        hashes: by item, as :func:`chunk_hashes` gives them.
    """
    for part in graph_parts(manifest):
        with (folder / part.file).open("wb") as stream:
            for item in part.items:
                stream.write(bytes_of[manifest.weights[item - 1].name])
    (folder / CHUNKS).write_bytes(b"".join(hashes))
