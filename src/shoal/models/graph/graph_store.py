"""The graphs on this machine: each imported once, and kept by what its file was and by how it is computed.

What was imported lies in a folder: the manifest, the optimised graph without its weights, and those.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock

from shoal.errors import BadWeights, UnknownModel, UsageError
from shoal.models.graph.author import IMAGE_CONFIG
from shoal.models.graph.importer import check_runtime, import_apart
from shoal.models.graph.manifest import (
    MANIFEST_FILE,
    MAX_GRAPH_MANIFEST,
    GraphManifest,
    graph_digest,
    read_graph_manifest,
)
from shoal.models.store.disk import check_free, told_if_full
from shoal.types import Digest, ModelShape, Span

SUFFIX = ".onnx"
SOURCE = "source.json"
IMPORT_VERSION = 5
"""Of how graphs are imported: one that an older way has imported is imported anew."""


@dataclass(frozen=True)
class LocalGraph:
    """An imported graph."""

    name: str
    folder: Path
    raw: bytes
    """The manifest as it is hashed."""

    @cached_property
    def manifest(self) -> GraphManifest:
        return read_graph_manifest(self.raw)

    @property
    def digest(self) -> Digest:
        return graph_digest(self.raw)

    @cached_property
    def shape(self) -> ModelShape:
        return self.manifest.shape(self.name, self.digest)

    @property
    def path(self) -> Path:
        """Where its files are."""
        return self.folder

    def weight_bytes(self, span: Span) -> int:
        """Bytes of the weights that a span's segments load."""
        return sum(segment.weight_bytes for segment in self.manifest.segments[span.start : span.end])


def check_segments(graph: LocalGraph, span: Span) -> None:
    """Raises UsageError: the graph has no such segments."""
    count = len(graph.manifest.segments)
    if span.end > count:
        raise UsageError(
            f"{graph.name} has {count} segments: 0:{count}, not {span}",
            next_command=f"shoal models show {graph.name}",
        )


def names_graph(name: str) -> bool:
    """Whether a name means a graph's file."""
    return name.lower().endswith(SUFFIX)


class GraphStore:
    """Graphs under ``root``. Processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> list[LocalGraph]:
        """Every graph that was imported here, as it was then."""
        return sorted(filter(_is_whole, self._read_all()), key=lambda graph: graph.name.casefold())

    def find(self, name: str) -> LocalGraph | None:
        """The graph that was imported here by that name or digest; of several by one name, the newest."""
        named = (graph for graph in self._read_all() if name in (graph.name, graph.digest))
        found = [graph for graph in named if _is_whole(graph)]  # decoding is what takes long
        return max(found, key=lambda graph: (graph.folder / SOURCE).stat().st_mtime, default=None)

    def rm(self, name: str) -> LocalGraph | None:
        """Remove an imported graph, by its name or digest; its file stays. ``None`` where there is none."""
        graph = self.find(name)
        if graph is not None:
            shutil.rmtree(graph.folder, ignore_errors=True)
        return graph

    def resolve(self, file: str, threads: int = 1) -> LocalGraph:
        """The graph of a file, imported if that was not done before.

        Args:
            threads: that will compute each segment. Another number is another graph: bits may differ.

        Raises:
            UnknownModel: there is no such file.
            BadWeights, UnsupportedModel, IncompatibleLibrary: as :func:`import_apart`.
            OutOfResources: the disk is full.
        """
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise UnknownModel(f"there is no file {path}", check="check the path of the graph")
        check_runtime()
        key = _key(path, threads)
        folder = self.root / key
        with told_if_full(self.root, path.name):
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{key}.lock"):
                found = _read(folder)
                if found is None or not _is_whole(found):
                    self._import(path, folder, threads)
                    found = _read(folder)
        if found is None or not _is_whole(found):
            raise BadWeights(f"{folder}: what was imported cannot be read", check="check the disk for errors")
        return found

    def shared_folder(self, digest: Digest) -> Path:
        """The folder for a graph that comes from peers."""
        return self.root / f"peers-{digest.removeprefix('sha256:')}"

    def keep_shared(self, digest: Digest, name: str) -> LocalGraph:
        """The graph in :meth:`shared_folder`, of which its manifest and the graph itself have come.

        Raises:
            BadWeights: it cannot be read.
        """
        folder = self.shared_folder(digest)
        (folder / SOURCE).write_text(json.dumps({"name": name, "peers": True}))
        found = _read(folder)
        if found is None or found.digest != digest or not _is_whole(found):
            raise BadWeights(
                f"{folder}: what came from peers cannot be read", check="check the disk for errors"
            )
        return found

    def _import(self, file: Path, folder: Path, threads: int) -> None:
        check_free(self.root, file.name, 2 * file.stat().st_size)
        for left in self.root.glob(
            f".partial-{folder.name}-*"
        ):  # of imports that were killed: this has the lock
            shutil.rmtree(left, ignore_errors=True)
        partial = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
        partial.mkdir()
        try:
            import_apart(file, partial, threads)
            said = {"name": file.stem, "file": str(file)}
            (partial / SOURCE).write_text(json.dumps(said))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _read_all(self) -> Iterator[LocalGraph]:
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else []:
            if not folder.name.startswith(".") and (graph := _read(folder)) is not None:
                yield graph


def _read(folder: Path) -> LocalGraph | None:
    """The graph in a folder, its manifest not decoded yet; ``None`` where there is none."""
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
        name = json.loads((folder / SOURCE).read_bytes())["name"]
        if len(raw) > MAX_GRAPH_MANIFEST or not isinstance(name, str):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return LocalGraph(name, folder, raw)


def _is_whole(graph: LocalGraph) -> bool:
    """Whether its manifest can be decoded."""
    try:
        _ = graph.manifest
    except BadWeights:
        return False
    return True


def _key(file: Path, threads: int) -> str:
    """Changes when the file does, by its size and time of change and those of what lies beside it, or when
    what imports it does."""
    beside = [
        path
        for path in sorted(file.parent.iterdir())
        if path.name.startswith(file.stem) or path.name == IMAGE_CONFIG
    ]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in beside if path.is_file()]
    said = [IMPORT_VERSION, _runtime_version(), threads, str(file), stats]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _runtime_version() -> str:
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return ""
