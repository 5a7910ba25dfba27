"""An adapter's folder as it goes from peer to peer: a manifest of PEFT's two files, and chunks as of models.

The digest of an adapter is of what it adds to a model, not of its files: two folders that PEFT has written at
different times may have one. So a manifest is the word of the peer that sends it. It has a digest of its own,
by which its chunks are asked for and checked; whether they make the adapter is known once all are here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.peft_config import CONFIG, LIMIT
from shoal.models.adapters.read import MAX_BYTES, WEIGHTS
from shoal.models.checkpoint.manifest import CHUNK, Manifest, ManifestItem
from shoal.models.untrusted.bounded_json import parse
from shoal.types import DIGEST, SHA256, AdapterDigest, Digest

VERSION = 1
MAX_ADAPTER_MANIFEST = 1 << 12
"""Bytes; one has some 350."""
MOST = {CONFIG: LIMIT.size, WEIGHTS: MAX_BYTES}
"""The files, in the order of their items, and how many bytes each may have."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The files of an adapter of this machine."""

    name: str
    path: Path
    digest: Digest
    """The adapter's: by it peers ask for the manifest."""
    manifest: Manifest
    hashes: bytes
    """Of all chunks: the folder is its owner's, and nothing is written there."""


def hash_adapter(adapter: Adapter) -> AdapterFiles:
    """The files of an adapter that was read from a folder.

    Raises:
        BadWeights: they cannot be read, or are not there any more.
    """
    folder = adapter.folder
    if folder is None:
        raise BadWeights(f"the adapter {adapter.name} has no folder")
    hashes, files = b"", list[ManifestItem]()
    for name in MOST:
        size, chunks = _chunk_hashes(folder / name)
        files.append(ManifestItem(name, size, hashlib.sha256(chunks).hexdigest()))
        hashes += chunks
    said = {"version": VERSION, "adapter": adapter.digest, "files": [_fields(file) for file in files]}
    raw = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    digest = Digest(adapter.digest)
    return AdapterFiles(adapter.name, folder, digest, _manifest(raw, files), hashes)


def read_adapter_manifest(raw: bytes) -> tuple[AdapterDigest, Manifest]:
    """The adapter that a manifest says it is of, and the manifest; a stranger wrote it.

    Raises:
        BadWeights: it is none, of another version, or says what cannot be.
    """
    if len(raw) > MAX_ADAPTER_MANIFEST:
        raise _bad(f"it has {len(raw)} bytes, more than the {MAX_ADAPTER_MANIFEST} that are read")
    try:
        value = parse(raw, values=100)
    except (ValueError, RecursionError) as error:
        raise _bad(f"not valid JSON ({error})") from error
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    if fields.get("version") != VERSION:
        raise _bad(f"its version is {str(fields.get('version'))[:20]}, {VERSION} is read")
    adapter, listed = fields.get("adapter"), fields.get("files")
    if not isinstance(adapter, str) or not DIGEST.fullmatch(adapter):
        raise _bad("it names no adapter")
    files = [_file(file) for file in (cast("list[object]", listed) if isinstance(listed, list) else [])]
    if [file.name for file in files] != list(MOST):
        raise _bad(f"an adapter has the files {' and '.join(MOST)}")
    return AdapterDigest(adapter), _manifest(raw, files)


def _manifest(raw: bytes, files: Sequence[ManifestItem]) -> Manifest:
    return Manifest(raw, {}, tuple(files), tuple(accumulate((file.chunks for file in files), initial=0)))


def _fields(file: ManifestItem) -> list[Any]:
    return [file.name, file.size, file.sha256]


def _file(value: object) -> ManifestItem:
    fields = cast("list[Any]", value) if isinstance(value, list) else []
    name, size, sha256 = fields if len(fields) == 3 else (None, None, None)
    if not isinstance(name, str) or name not in MOST:
        raise _bad(f"{str(name)[:80]!r} is no file of an adapter")
    if type(size) is not int or not 0 < size <= MOST[name]:
        raise _bad(f"{name} has {str(size)[:20]} bytes, and {MOST[name]} are the most")
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise _bad(f"{name} has no sha256")
    return ManifestItem(name, size, sha256)


def _chunk_hashes(file: Path) -> tuple[int, bytes]:
    """Bytes of a file, and the sha256s of its chunks."""
    found, size = list[bytes](), 0
    try:
        with file.open("rb") as stream:
            while data := stream.read(CHUNK):
                found.append(hashlib.sha256(data).digest())
                size += len(data)
    except OSError as error:
        raise BadWeights(f"{file}: it cannot be read ({error.strerror})", check="check the disk") from error
    return size, b"".join(found)


def _bad(what: str) -> BadWeights:
    return BadWeights(f"an adapter's manifest: {what}", check="fetch the adapter from peers that you trust")
