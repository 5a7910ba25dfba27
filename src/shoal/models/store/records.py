"""What the store writes down about a model, so that knowing it again costs neither hashing nor imports."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, cast

from shoal.models.checkpoint.digest import HashedModel, files_fingerprint
from shoal.models.checkpoint.parts import CHUNKS, MANIFEST
from shoal.models.store.local_model import LocalModel, SamplingDefaults
from shoal.types import Digest, ModelShape

RECORD = "model.json"
WEIGHTS = "weights"
"""The folder, beside the record, of weights that were converted here."""
VERSION = 5
"""Of the record's format. Models recorded in an older one are described anew when they are next used: up to
the third the digest did not cover the text files, and nothing was known of chunks; up to the fourth it did
not cover the towers that clients run."""


def write(folder: Path, model: LocalModel, hashed: HashedModel) -> None:
    """Record a model in ``folder``, at once or not at all, with what peers are given of it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (model.path / MANIFEST).is_file():
        _replace(folder / CHUNKS, hashed.chunk_hashes)
        _replace(folder / MANIFEST, hashed.manifest.raw)
    record = dataclasses.asdict(model) | {
        "version": VERSION,
        "path": WEIGHTS if model.path == folder / WEIGHTS else str(model.path),
        "end_tokens": sorted(model.end_tokens),
        "fingerprint": files_fingerprint(model.path),
    }
    _replace(folder / RECORD, json.dumps(record, indent=1).encode())


def shared_files(folder: Path, model: LocalModel) -> Path:
    """Where the manifest of the model recorded in ``folder`` lies, and the hashes of its chunks."""
    return model.path if (model.path / MANIFEST).is_file() else folder


def _replace(file: Path, raw: bytes) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_bytes(raw)
    partial.replace(file)


def read(folder: Path) -> LocalModel | None:
    """The model recorded in ``folder``; None when there is no record that can be read."""
    record = raw(folder)
    if record is None:
        return None
    try:
        return LocalModel(
            name=record["name"],
            path=folder / WEIGHTS if record["path"] == WEIGHTS else Path(record["path"]),
            digest=Digest(record["digest"]),
            shape=ModelShape(**record["shape"]),
            size=record["size"],
            dtype=record["dtype"],
            source=record["source"],
            end_tokens=frozenset(record["end_tokens"]),
            sampling=SamplingDefaults(**record.get("sampling", {})),
        )
    except (KeyError, TypeError, ValueError):
        return None


def raw(folder: Path) -> dict[str, Any] | None:
    """The record's fields, the fingerprint of the model's files among them."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    fields = cast(dict[str, Any], record)
    version = fields.get("version")
    if not isinstance(version, int) or not 0 < version <= VERSION:
        return None
    if version < VERSION:
        fields.pop("fingerprint", None)  # it knows less than is wanted now
    return fields
