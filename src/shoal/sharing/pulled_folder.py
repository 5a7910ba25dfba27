"""The folder of a model that comes from peers: what is here of it, and chunks on their way in.

Beside each file that is not whole yet lies what has come of it (``.partial``), and a map with a byte for each
chunk that has (``.chunks``): written after the chunk, so that after a kill no more is fetched again than what
was under way. What the map says is looked at again when a pull goes on: a machine may have lost power.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shoal.errors import BadWeights
from shoal.models.checkpoint.manifest import CHUNK, HASH, Manifest, ManifestItem
from shoal.models.checkpoint.parts import CHUNKS, MANIFEST, ModelPart, layout, pulled_digest

PARTIAL = ".partial"
MAP = ".chunks"


class PulledFolder:
    """The folder of one model. From any thread; no other process may write to it meanwhile."""

    def __init__(self, folder: Path, manifest: Manifest, parts: Sequence[ModelPart] | None = None) -> None:
        """
        Args:
            parts: how the tensors are spread over files, where that is not as of a language model.

        Raises:
            OSError: the folder cannot be written.
            BadWeights: another model is there.
        """
        self.folder = folder
        self.manifest = manifest
        self._lock = threading.Lock()
        self._files: dict[str, _PartFile] = {}
        texts = [
            ModelPart(item.name, b"", (number,), (0,), item.size)
            for number, item in enumerate(manifest.items)
            if not item.is_tensor
        ]
        self._parts = {
            number: part
            for part in (*texts, *(layout(manifest) if parts is None else parts))
            for number in part.items
        }
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            fresh = folder / f".{MANIFEST}"
            fresh.write_bytes(manifest.raw)
            fresh.replace(folder / MANIFEST)
        elif pulled_digest(folder) != manifest.digest:
            raise BadWeights(
                f"{folder}: another model is there",
                check="wait for the other pull to end, and pull again: this model gets another name then",
            )
        size = HASH * manifest.first_chunks[-1]
        self._hashes = bytearray(_read(folder / CHUNKS)[:size].ljust(size, b"\0"))

    def files_of(self, items: Iterable[int]) -> set[Path]:
        """The files that hold such items, or are to."""
        return {self.folder / self._parts[number].file for number in items}

    def whole(self, items: Iterable[int]) -> set[int]:
        """All items of the files that hold these: a file has all of its own, or is not there."""
        return {other for number in items for other in self._parts[number].items}

    def missing(self, items: Iterable[int]) -> dict[int, list[int]]:
        """The chunks that are not here, by item, in the order in which files become whole soonest.

        Reads what has come of files that are not whole, to be sure of it.
        """
        wanted = sorted(self.whole(items), key=lambda number: (self._parts[number].file, number))
        found: dict[int, list[int]] = {}
        for number in wanted:
            part = self._parts[number]
            file = self._file(part)
            if file is not None:
                found[number] = self._missing_of(file, number)
        return {number: chunks for number, chunks in found.items() if chunks}

    def has_hashes(self, number: int) -> bool:
        """Whether the hashes of an item's chunks are known."""
        return self.manifest.items[number].fits(self._hashes_of(number))

    def put_hashes(self, number: int, hashes: bytes) -> bool:
        """Take in the hashes of an item's chunks; whether they are.

        Raises:
            OSError: the disk is full.
        """
        if not self.manifest.items[number].fits(hashes):
            return False
        begin = HASH * self.manifest.first_chunks[number]
        with self._lock:
            self._hashes[begin : begin + len(hashes)] = hashes
            _write_at(self.folder / CHUNKS, begin, hashes)
        return True

    def put_chunk(self, number: int, index: int, data: bytes) -> bool:
        """Take in a chunk of an item whose hashes are known, or which has only one; whether it is right.

        Raises:
            OSError: the disk is full.
        """
        item = self.manifest.items[number]
        if not self._is_right(number, index, data):
            return False
        if item.chunks == 1:
            self.put_hashes(number, hashlib.sha256(data).digest())
        part = self._parts[number]
        file = self._file(part)
        if file is None:  # two peers have sent it
            return True
        if file.put(number, index, data):
            with self._lock:
                self._files.pop(part.file, None)
        return True

    def finish_empty(self, items: Iterable[int]) -> None:
        """Make the files of which nothing is to be fetched: their items have no bytes, or all had come.

        Raises:
            OSError: the disk is full.
        """
        for part in {self._parts[number].file: self._parts[number] for number in items}.values():
            file = self._file(part)
            if file is not None and file.is_full:
                file.finish()
                with self._lock:
                    self._files.pop(part.file, None)

    def close(self) -> None:
        """Close all files; what has come stays."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _is_right(self, number: int, index: int, data: bytes) -> bool:
        item = self.manifest.items[number]
        if len(data) != item.chunk_size(index):
            return False
        found = hashlib.sha256(data).digest()
        if item.chunks == 1:
            return item.fits(found)
        return found == self._hashes_of(number)[HASH * index : HASH * (index + 1)]

    def _missing_of(self, file: _PartFile, number: int) -> list[int]:
        item = self.manifest.items[number]
        return [
            index
            for index in range(item.chunks)
            if not file.has(number, index) or not self._still_right(file, number, index)
        ]

    def _still_right(self, file: _PartFile, number: int, index: int) -> bool:
        if self._is_right(number, index, file.read(number, index)):
            return True
        file.forget(number, index)
        return False

    def _hashes_of(self, number: int) -> bytes:
        first, end = self.manifest.first_chunks[number : number + 2]
        return bytes(self._hashes[HASH * first : HASH * end])

    def _file(self, part: ModelPart) -> _PartFile | None:
        """A file that is not whole yet; ``None`` for one that is in its place."""
        with self._lock:
            if part.file not in self._files:
                # Under the lock: a file is in its place before it is taken out of the table.
                if (self.folder / part.file).exists():
                    return None
                self._files[part.file] = _PartFile(self.folder, part, self.manifest.items)
            return self._files[part.file]


class _PartFile:
    """A file that is being filled."""

    def __init__(self, folder: Path, part: ModelPart, items: tuple[ManifestItem, ...]) -> None:
        self._path = folder / part.file
        self._partial = folder / f"{part.file}{PARTIAL}"
        self._map_path = folder / f"{part.file}{MAP}"
        self._begins = dict(zip(part.items, part.begins, strict=True))
        self._items = items
        self._firsts: dict[int, int] = {}
        chunks = 0
        for number in part.items:
            self._firsts[number] = chunks
            chunks += items[number].chunks
        self._lock = threading.Lock()
        self._path.parent.mkdir(exist_ok=True)
        begun = self._partial.is_file() and self._partial.stat().st_size == part.size
        known = _read(self._map_path) if begun else b""
        self._map = bytearray(known[:chunks].ljust(chunks, b"\0"))
        if not begun:
            self._map_path.unlink(missing_ok=True)
            with self._partial.open("wb") as fresh:
                fresh.write(part.header)
                fresh.truncate(part.size)
        self._stream: BinaryIO | None = None
        self._finished = False

    @property
    def is_full(self) -> bool:
        return all(self._map)

    def has(self, number: int, index: int) -> bool:
        return bool(self._map[self._firsts[number] + index])

    def forget(self, number: int, index: int) -> None:
        self._map[self._firsts[number] + index] = 0

    def read(self, number: int, index: int) -> bytes:
        with self._partial.open("rb") as stream:
            stream.seek(self._begins[number] + index * CHUNK)
            return stream.read(self._items[number].chunk_size(index))

    def put(self, number: int, index: int, data: bytes) -> bool:
        """Write a chunk, and then that it is there; whether the file is whole now, and in its place."""
        with self._lock:
            if self._finished:  # the same chunk of another peer was the last
                return True
            if self._stream is None:
                self._stream = self._partial.open("r+b", buffering=0)
            self._stream.seek(self._begins[number] + index * CHUNK)
            _write_all(self._stream, data)
            place = self._firsts[number] + index
            _write_at(self._map_path, place, b"\1")
            self._map[place] = 1
            if not all(self._map):
                return False
        self.finish()
        return True

    def finish(self) -> None:
        """Put the file where it belongs: what is there after a loss of power is whole."""
        with self._lock:
            if self._finished:
                return
            if self._stream is None:
                self._stream = self._partial.open("r+b", buffering=0)
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None
            self._partial.replace(self._path)
            self._map_path.unlink(missing_ok=True)
            self._finished = True

    def close(self) -> None:
        with self._lock, suppress(OSError):
            if self._stream is not None:
                self._stream.close()
                self._stream = None


def _write_at(file: Path, begin: int, data: bytes) -> None:
    with file.open("r+b", buffering=0) if file.exists() else file.open("w+b", buffering=0) as stream:
        stream.seek(begin)
        _write_all(stream, data)


def _write_all(stream: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""
