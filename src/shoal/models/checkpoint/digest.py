"""Hashing a model: its manifest, the hash of which is what makes two copies the same model.

Tensors are hashed as their bytes lie in the file, codes and scales of published quantisations among them. So
a GGUF file is another model than the safetensors that it was made of, or that are made of it; split in parts
it is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights
from shoal.models.checkpoint.checkpoint import CONFIG, Checkpoint
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.checkpoint.json_file import read_object
from shoal.models.checkpoint.manifest import (
    CHUNK,
    EMBEDDING_FILES,
    HASH,
    MAX_TEXT,
    PICTURE_FILES,
    POOLING,
    TEMPLATES,
    TEXT_FILES,
    TOKENIZER,
    VOCABULARY_FILES,
    Manifest,
    ManifestItem,
    is_text_file,
    write_manifest,
)
from shoal.models.checkpoint.multimodal import language_config
from shoal.models.checkpoint.parts import CHUNKS
from shoal.progress import Progress, silent
from shoal.types import Digest

# Who wrote the file, with what and from where; and the dtype that its author would load it in.
VOLATILE = frozenset(
    {"transformers_version", "_name_or_path", "name_or_path", "torch_dtype", "dtype", "auto_map"}
)


@dataclass(frozen=True, slots=True)
class HashedModel:
    """What hashing a model gives."""

    manifest: Manifest
    chunk_hashes: bytes
    """The sha256s of all items' chunks, in the items' order; zeros for what is not here."""


def compute_digest(checkpoint: Checkpoint, progress: Progress = silent) -> Digest:
    """The digest of a checkpoint. Raises as :func:`hash_model`."""
    return hash_model(checkpoint, progress).manifest.digest


def hash_model(checkpoint: Checkpoint, progress: Progress = silent) -> HashedModel:
    """The manifest of a checkpoint. Reads every byte of it, with constant memory.

    Of a model that came from peers the tensors were checked as they came, and only the rest is read.

    Raises:
        BadWeights: a file cannot be read, or became shorter while it was; an element is NaN or infinite; what
            came from peers is no longer what the manifest beside it says.
    """
    whole = read_object(checkpoint.folder / "config.json", CONFIG)
    config = _lasting(language_config(whole) if checkpoint.tower is None else whole)
    texts = [_hash_text(checkpoint.folder, name) for name in _text_files(checkpoint)]
    if checkpoint.manifest is not None:
        return _check_pulled(checkpoint.folder, checkpoint.manifest, config, [item for item, _ in texts])
    stored = checkpoint.stored
    total = sum(entry.size for entry in stored)
    done = 0
    hashed = dict(texts)
    buffer = bytearray(CHUNK)
    # In the order of the bytes on the disk; the manifest is sorted by name.
    for entry in sorted(stored, key=lambda e: (e.file, e.begin)):
        hashes = _hash_tensor(entry, buffer)
        hashed[_tensor_item(entry, hashes)] = hashes
        done += entry.size
        progress("Hashing", done, total)
    manifest = write_manifest(config, list(hashed))
    return HashedModel(manifest, b"".join(hashed[item] for item in manifest.items))


def changed_items(checkpoint: Checkpoint, manifest: Manifest, progress: Progress = silent) -> list[str]:
    """The tensors and text files of a folder that are not what its model's manifest says, by name.

    Reads every byte, also of a model that came from peers. What is not here at all is not named.

    Raises:
        BadWeights: a file cannot be read, or became shorter while it was; an element is NaN or infinite.
    """
    known = {item.name: item for item in manifest.items}
    found = [
        name for name in _text_files(checkpoint) if _hash_text(checkpoint.folder, name)[0] != known.get(name)
    ]
    total, done = sum(entry.size for entry in checkpoint.stored), 0
    buffer = bytearray(CHUNK)
    for entry in sorted(checkpoint.stored, key=lambda e: (e.file, e.begin)):
        if entry.file.is_file() and _tensor_item(entry, _hash_tensor(entry, buffer)) != known.get(entry.name):
            found.append(entry.name)
        done += entry.size
        progress("Checking the weights", done, total)
    return found


def files_fingerprint(folder: Path) -> str:
    """Changes when a file of a model's folder does, by size and time of change; costs no reading.

    Raises:
        OSError: the folder is gone.
    """
    names = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".safetensors", ".gguf")]
    # Parts are added to a model that comes from peers, and each is what its manifest says.
    names = [p for p in names if not p.name.startswith("part-")] + [
        folder / name for name in _texts_of(folder) if "/" in name or not name.endswith(".json")
    ]
    # In the hub's cache files are links; one that leads nowhere any more is a change, too.
    stats = [
        (p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns)
        for p in names
        if p.exists()
    ]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def file_sha256(file: Path, label: str, progress: Progress = silent) -> str:
    """The hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    total, done = file.stat().st_size, 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(label, done, total)
    return digest.hexdigest()


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, and the configs in it, without what is :data:`VOLATILE`."""
    return {
        name: _lasting(cast("dict[str, Any]", value)) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in VOLATILE
    }


def _text_files(checkpoint: Checkpoint) -> list[str]:
    """The text files of a checkpoint that belong to it, by their names in its folder."""
    seeing = PICTURE_FILES if checkpoint.tower is not None else ()
    return sorted(
        [*_texts_of(checkpoint.folder), *(name for name in seeing if (checkpoint.folder / name).is_file())]
    )


def _texts_of(folder: Path) -> list[str]:
    """Those that belong to any model."""
    found = [name for name in TEXT_FILES + EMBEDDING_FILES if (folder / name).is_file()]
    found += [path.relative_to(folder).as_posix() for path in folder.glob(POOLING)]
    if TOKENIZER not in found:
        others = [*VOCABULARY_FILES, *(path.name for path in folder.glob("*.tiktoken"))]
        found += [name for name in others if (folder / name).is_file()]
    templates = [f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja")]
    return sorted(filter(is_text_file, found + templates))


def _hash_text(folder: Path, name: str) -> tuple[ManifestItem, bytes]:
    file = folder / name
    try:
        if file.stat().st_size > MAX_TEXT:
            raise BadWeights(f"{file}: larger than the {MAX_TEXT >> 20} MiB that we read")
        raw = file.read_bytes()
    except OSError as error:
        raise BadWeights(
            f"{file}: it cannot be read ({error.strerror})", check="check the file's permissions"
        ) from error
    hasher = ChunkHasher()
    hasher.update(memoryview(raw))
    hashes = hasher.finish()
    return ManifestItem(name, len(raw), hashlib.sha256(hashes).hexdigest()), hashes


def _check_pulled(
    folder: Path, manifest: Manifest, config: Mapping[str, Any], texts: Sequence[ManifestItem]
) -> HashedModel:
    if config != manifest.config or set(texts) != {item for item in manifest.items if not item.is_tensor}:
        raise BadWeights(
            f"{folder}: its config or its tokenizer is not what came from peers with its manifest",
            check="remove the model and fetch it again",
        )
    size = HASH * manifest.first_chunks[-1]
    file = folder / CHUNKS
    try:
        hashes = file.read_bytes() if file.is_file() else b""
    except OSError as error:
        raise BadWeights(f"{file}: it cannot be read ({error.strerror})", check="check the disk") from error
    return HashedModel(manifest, hashes[:size].ljust(size, b"\0"))


def _tensor_item(entry: TensorEntry, hashes: bytes) -> ManifestItem:
    sha256 = hashlib.sha256(hashes).hexdigest()
    return ManifestItem(
        entry.name, entry.size, sha256, entry.dtype, tuple(entry.shape), entry.heads, entry.less
    )


def _hash_tensor(entry: TensorEntry, buffer: bytearray) -> bytes:
    try:
        return _hash_bytes(entry, buffer)
    except OSError as error:
        raise BadWeights(
            f"{entry.file}: it cannot be read ({error.strerror})", check="check the disk for errors"
        ) from error


def _hash_bytes(entry: TensorEntry, buffer: bytearray) -> bytes:
    from shoal.models.checkpoint.finite import check_finite, whole_bytes  # noqa: PLC0415 - numpy, which a fingerprint needs not

    hasher = ChunkHasher()
    left, block = entry.size, whole_bytes(entry)
    piece = len(buffer) // block * block
    with entry.file.open("rb") as stream, memoryview(buffer) as view:
        stream.seek(entry.begin)
        while left:
            read = stream.readinto(view[: min(left, piece)])  # whole blocks, but at the file's end
            if not read:
                raise BadWeights(f"{entry.file}: it was cut while it was read", check="fetch the model again")
            hasher.update(view[:read])
            left -= read
            if read % block == 0:
                check_finite(entry, view[:read])
    return hasher.finish()


class ChunkHasher:
    """The sha256 of each 1 MiB of what it is given, in any pieces."""

    def __init__(self) -> None:
        self._hashes: list[bytes] = []
        self._chunk = hashlib.sha256()
        self._filled = 0

    def update(self, data: memoryview) -> None:
        while len(data):
            part = data[: CHUNK - self._filled]
            self._chunk.update(part)
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == CHUNK:
                self._end_chunk()

    def finish(self) -> bytes:
        """All hashes, one after another."""
        if self._filled:
            self._end_chunk()
        return b"".join(self._hashes)

    def _end_chunk(self) -> None:
        self._hashes.append(self._chunk.digest())
        self._chunk, self._filled = hashlib.sha256(), 0
