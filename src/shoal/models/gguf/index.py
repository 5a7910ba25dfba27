"""Which tensors of a checkpoint lie where in GGUF files: ``gguf.json`` in its folder, beside the files.

It spares whoever opens the checkpoint the files' own headers, of which the vocabulary alone takes a tenth of
a second. A stranger's folder may hold one too, so it is checked as any header is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights
from shoal.models.checkpoint.headers import MAX_DIMENSIONS, MAX_TENSORS, TensorEntry
from shoal.models.checkpoint.json_file import SizeLimit, read_object
from shoal.models.gguf.weights import block_size

INDEX = "gguf.json"
LIMIT = SizeLimit(64 << 20, 2_000_000)
"""A tensor has seven values and up to eight sizes."""


def write_index(folder: Path, entries: Sequence[TensorEntry]) -> None:
    """Write ``gguf.json``; the entries' files are those of ``folder``."""
    tensors = {
        entry.name: {
            "type": entry.dtype,
            "shape": list(entry.shape),
            "file": entry.file.name,
            "begin": entry.begin,
            **({"heads": entry.heads} if entry.heads else {}),
            **({"less": entry.less} if entry.less else {}),
        }
        for entry in entries
    }
    (folder / INDEX).write_text(json.dumps({"tensors": tensors}, indent=1) + "\n", encoding="utf-8")


def read_index(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor, by its name.

    Raises:
        BadWeights: a file is missing or too short, or the index is none that this program writes.
    """
    tensors = read_object(folder / INDEX, LIMIT).get("tensors")
    if not isinstance(tensors, dict) or not 0 < len(cast("dict[str, object]", tensors)) < MAX_TENSORS:
        raise _bad(folder, "it has no tensors, or too many")
    sizes: dict[str, int] = {}
    found: dict[str, TensorEntry] = {}
    for name, value in cast("dict[str, object]", tensors).items():
        entry = _entry(folder, name, value)
        if entry.file.name not in sizes:
            sizes[entry.file.name] = _size(folder, entry.file)
        if entry.begin + entry.size > sizes[entry.file.name]:
            raise BadWeights(
                f"{entry.file}: it is truncated: it ends within tensor {name[:80]!r}",
                check="check that the file is the one that was there when the model was fetched",
            )
        found[name] = entry
    return found


def _entry(folder: Path, name: str, value: object) -> TensorEntry:
    fields = cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
    dtype, shape, file = fields.get("type"), fields.get("shape"), fields.get("file")
    begin, heads, less = fields.get("begin"), fields.get("heads", 0), fields.get("less", 0.0)
    try:
        elements, size = block_size(dtype) if isinstance(dtype, str) else (0, 0)
    except KeyError:
        elements, size = 0, 0
    if not elements:
        raise _bad(folder, f"tensor {name[:80]!r} is of type {str(dtype)[:20]!r}")
    dims = _whole_numbers(shape)
    if not 1 <= len(dims) <= MAX_DIMENSIONS or math.prod(dims) >= 2**48 or dims[-1] % elements:
        raise _bad(folder, f"tensor {name[:80]!r} has an impossible shape")
    if not isinstance(file, str) or Path(file).name != file or not file.endswith(".gguf"):
        raise _bad(folder, f"tensor {name[:80]!r} is in {str(file)[:80]!r}, outside of the folder")
    if type(begin) is not int or not 0 <= begin < 2**63:
        raise _bad(folder, f"tensor {name[:80]!r} begins at {str(begin)[:20]}")
    if type(heads) is not int or not 0 <= heads <= dims[0] or _cuts(heads, dims, elements):
        raise _bad(folder, f"tensor {name[:80]!r} has rows of {str(heads)[:20]} heads")
    if less not in (0.0, 1.0):
        raise _bad(folder, f"tensor {name[:80]!r} is stored with {str(less)[:20]} added")
    whole = math.prod(dims) // elements * size
    return TensorEntry(name, cast(str, dtype), dims, folder / file, begin, whole, heads, float(less))


def _cuts(heads: int, dims: tuple[int, ...], elements: int) -> bool:
    """Whether rows of so many heads would be cut within a head, or within a block."""
    return bool(heads) and (dims[0] % (2 * heads) != 0 or (len(dims) == 1 and elements > 1))


def _whole_numbers(value: object) -> tuple[int, ...]:
    """A list of sizes above 0; empty when it is something else."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    sizes = tuple(item for item in items if type(item) is int and 0 < item < 2**48)
    return sizes if len(sizes) == len(items) else ()


def _size(folder: Path, file: Path) -> int:
    try:
        return file.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadWeights(
            f"{file.resolve()} is gone: the model's weights are read from there",
            check="put the GGUF file back where it was, or fetch the model again",
        ) from error
    except (OSError, ValueError) as error:  # a name may be too long, or none that a file can have
        reason = error.strerror if isinstance(error, OSError) else "no file is called so"
        raise _bad(folder, f"{file.name[:80]!r}, which it names, cannot be read ({reason})") from error


def _bad(folder: Path, what: str) -> BadWeights:
    return BadWeights(f"{folder / INDEX}: {what}", check="remove the model and fetch it again")
