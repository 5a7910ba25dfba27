"""A model's digest: what makes two copies the same model.

It covers the config, without what only records who wrote it, and every tensor's name, dtype, shape and bytes
as they lie in the file, codes and scales of published quantisations among them. How the tensors are spread
over files does not matter. So a GGUF file is another model than the safetensors that it was made of, or that
are made of it; split in parts it is the same.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from shoal.errors import BadWeights
from shoal.models.checkpoint.checkpoint import Checkpoint
from shoal.models.checkpoint.headers import TensorEntry
from shoal.progress import Progress, silent
from shoal.types import Digest

# Who wrote the file, with what and from where; and the dtype that its author would load it in.
VOLATILE = frozenset(
    {"transformers_version", "_name_or_path", "name_or_path", "torch_dtype", "dtype", "auto_map"}
)
CHUNK = 1 << 20
"""Bytes hashed at once."""


def compute_digest(checkpoint: Checkpoint, progress: Progress = silent) -> Digest:
    """The digest of a checkpoint. Reads every byte of it, with constant memory.

    Raises:
        BadWeights: a file cannot be read, or became shorter while it was; an element is NaN or infinite.
    """
    stored = checkpoint.stored
    total = sum(entry.size for entry in stored)
    done = 0
    tensors: list[list[Any]] = []
    buffer = bytearray(CHUNK)
    # In the order of the bytes on the disk; the manifest is sorted by name.
    for entry in sorted(stored, key=lambda e: (e.file, e.begin)):
        changed = [entry.heads, entry.less] if entry.heads or entry.less else []
        tensors.append([entry.name, entry.dtype, list(entry.shape), _hash_tensor(entry, buffer), *changed])
        done += entry.size
        progress("Hashing", done, total)
    config = {key: value for key, value in checkpoint.config.items() if key not in VOLATILE}
    if checkpoint.quantization is not None:
        config["quantization_config"] = checkpoint.quantization
    try:
        manifest = json.dumps(
            {"config": config, "tensors": sorted(tensors)},
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=True,
        )
    except RecursionError as error:
        raise BadWeights(f"{checkpoint.folder / 'config.json'}: it is nested too deeply") from error
    return Digest(f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}")


def files_fingerprint(folder: Path) -> str:
    """Changes when a file of a model's folder does, by size and time of change; costs no reading.

    Raises:
        OSError: the folder is gone.
    """
    names = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".safetensors", ".gguf")]
    # In the hub's cache files are links; one that leads nowhere any more is a change, too.
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in names if p.exists()]
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


def _hash_tensor(entry: TensorEntry, buffer: bytearray) -> str:
    try:
        return _hash_bytes(entry, buffer)
    except OSError as error:
        raise BadWeights(
            f"{entry.file}: it cannot be read ({error.strerror})", check="check the disk for errors"
        ) from error


def _hash_bytes(entry: TensorEntry, buffer: bytearray) -> str:
    from shoal.models.checkpoint.finite import check_finite, whole_bytes  # noqa: PLC0415 - numpy, which a fingerprint needs not

    digest = hashlib.sha256()
    left, block = entry.size, whole_bytes(entry)
    piece = len(buffer) // block * block
    with entry.file.open("rb") as stream, memoryview(buffer) as view:
        stream.seek(entry.begin)
        while left:
            read = stream.readinto(view[: min(left, piece)])  # whole blocks, but at the file's end
            if not read:
                raise BadWeights(f"{entry.file}: it was cut while it was read", check="fetch the model again")
            digest.update(view[:read])
            left -= read
            if read % block == 0:
                check_finite(entry, view[:read])
    return digest.hexdigest()
