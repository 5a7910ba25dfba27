"""A model, graph or adapter of this machine as others may have it: its manifest, and where its items lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shoal.errors import BadWeights, UnknownModel
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.files import hash_adapter
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.checkpoint.manifest import CHUNK, HASH, Manifest, read_manifest
from shoal.models.checkpoint.parts import CHUNKS, MANIFEST
from shoal.models.graph.graph_store import LocalGraph
from shoal.models.graph.items import graph_items, graph_parts
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.types import Digest
from shoal.wire.fetching import MAX_PIECE


class SharedFiles(Protocol):
    """A model, a graph or an adapter of this machine."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def digest(self) -> Digest: ...


@dataclass(frozen=True, slots=True)
class SharedModel:
    """Where the pieces of a model are. From any thread."""

    model: SharedFiles
    manifest: Manifest
    hashes: Path | bytes
    """Those of all chunks, or the file that has them."""
    entries: tuple[TensorEntry | None, ...]
    """Where each item that is a tensor lies, by its place in the manifest."""

    @classmethod
    def open(cls, store: ModelStore, model: LocalModel) -> SharedModel:
        """
        Raises:
            UnknownModel: nothing is known of its chunks.
            BadWeights: its files are damaged.
        """
        folder = store.shared_files(model)
        try:
            raw = (folder / MANIFEST).read_bytes()
        except OSError as error:
            raise UnknownModel(
                f"the manifest of {model.name} is not here",
                check="have the model described anew",
                next_command=f"shoal models show {model.name}",
            ) from error
        manifest = read_manifest(raw)
        if manifest.digest != model.digest:
            raise BadWeights(
                f"{folder / MANIFEST}: it is of another model",
                check="have the model described anew",
                next_command=f"shoal models show {model.name}",
            )
        stored = {entry.name: entry for entry in open_checkpoint(model.path).stored}
        entries = tuple(stored.get(item.name) if item.is_tensor else None for item in manifest.items)
        return cls(model, manifest, folder / CHUNKS, entries)

    @classmethod
    def of_graph(cls, graph: LocalGraph) -> SharedModel:
        """A graph as it was imported, or as far as it has come from peers."""
        manifest = graph_items(graph.manifest, graph.raw)
        entries: list[TensorEntry | None] = [None] * len(manifest.items)
        for part in graph_parts(graph.manifest):
            for number, begin in zip(part.items, part.begins, strict=True):
                item, file = manifest.items[number], graph.folder / part.file
                entries[number] = TensorEntry(item.name, item.dtype, item.shape, file, begin, item.size)
        return cls(graph, manifest, graph.folder / CHUNKS, tuple(entries))

    @classmethod
    def of_adapter(cls, adapter: Adapter) -> SharedModel:
        """An adapter as it lies in its folder. Raises BadWeights: its files cannot be read."""
        files = hash_adapter(adapter)
        return cls(files, files.manifest, files.hashes, (None,) * len(files.manifest.items))

    def offer(self) -> bytes:
        """Which items are here: a bit for each, the first one the lowest of its byte."""
        bits = bytearray(-(-len(self.entries) // 8))
        for number in range(len(self.entries)):
            if self._file(number).exists():
                bits[number // 8] |= 1 << number % 8
        return bytes(bits)

    def manifest_piece(self, index: int) -> bytes:
        """A piece of the manifest's bytes. The last one is shorter than ``MAX_PIECE``, if need be empty."""
        return self.manifest.raw[MAX_PIECE * index : MAX_PIECE * (index + 1)]

    def hashes_piece(self, item: int, index: int) -> bytes:
        """Some of the hashes of an item's chunks. Raises as :meth:`chunk`."""
        self._check(item)
        first, end = self.manifest.first_chunks[item : item + 2]
        begin = HASH * first + MAX_PIECE * index
        size = min(MAX_PIECE, max(0, HASH * end - begin))
        if isinstance(self.hashes, bytes):
            return self.hashes[begin : begin + size]
        return self._read(self.hashes, begin, size)

    def chunk(self, item: int, index: int) -> bytes:
        """A chunk of an item.

        Raises:
            UnknownModel: it is not here.
            BadWeights: its file cannot be read, has become shorter, or, of an adapter, has changed.
        """
        self._check(item)
        if not 0 <= index < self.manifest.items[item].chunks:
            raise UnknownModel(f"item {item} has {self.manifest.items[item].chunks} chunks, not {index}")
        entry = self.entries[item]
        begin = CHUNK * index + (entry.begin if entry else 0)
        data = self._read(self._file(item), begin, self.manifest.items[item].chunk_size(index))
        if isinstance(self.hashes, bytes):
            # A folder of somebody who may train on in it: a wrong chunk would cost this peer its place.
            place = HASH * (self.manifest.first_chunks[item] + index)
            if hashlib.sha256(data).digest() != self.hashes[place : place + HASH]:
                raise BadWeights(f"{self._file(item)}: it has changed since it was shared")
        return data

    def _check(self, item: int) -> None:
        if not 0 <= item < len(self.entries):
            raise UnknownModel(f"{self.model.name} has {len(self.entries)} items, not {item}")

    def _file(self, item: int) -> Path:
        entry = self.entries[item]
        return self.model.path / self.manifest.items[item].name if entry is None else entry.file

    def _read(self, file: Path, begin: int, size: int) -> bytes:
        try:
            with file.open("rb", buffering=0) as stream:
                stream.seek(begin)
                data = stream.read(size)
        except FileNotFoundError as error:
            raise UnknownModel(f"this part of {self.model.name} is not here") from error
        except OSError as error:
            raise BadWeights(
                f"{file}: it cannot be read ({error.strerror})", check="check the disk"
            ) from error
        if len(data) != size:
            raise BadWeights(f"{file}: it became shorter", check="fetch the model again")
        return data
