"""Reading a safetensors file's header without trusting it.

The format: 8 bytes of little-endian length, that many bytes of JSON, then the tensors' bytes. The JSON maps
each tensor's name to its dtype, its shape and its ``[begin, end)`` in those bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights
from shoal.models.store.lookalikes import what_it_is
from shoal.models.untrusted.bounded_json import parse

MAX_HEADER = 64 << 20
"""Bytes. The largest honest headers, of models with tens of thousands of tensors, are about 10 MB."""
MAX_TENSORS = 100_000
"""Tensors in one checkpoint; 100,000 entries or more are refused."""
MAX_DIMENSIONS = 8
MAX_VALUES = 2_000_000
"""In a header, lists' included: a tensor has a dtype, two offsets, and one for each dimension."""

ITEM_SIZE = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
"""Bytes of one element of each dtype that we accept."""
FLOATING = ("F64", "F32", "F16", "BF16")
"""Those that weights are in as they are; floats of 8 bits mean something by their scales alone."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies."""

    name: str
    dtype: str
    """As its file names it, for example ``BF16`` in safetensors, ``Q4_1`` in a GGUF file."""
    shape: tuple[int, ...]
    file: Path
    begin: int
    """Its first byte, counted from the beginning of the file."""
    size: int
    """Bytes."""
    heads: int = 0
    """How many heads the rows are of, if they are in llama.cpp's order: pairs that rotate together are
    neighbours there, where transformers has halves; 0: the rows are in order."""
    less: float = 0.0
    """What is taken off each element: Gemma's norms are stored in GGUF files with 1 added."""

    @property
    def is_plain(self) -> bool:
        """Whether the bytes are the elements, one after another, as they are in a safetensors file."""
        return self.dtype in ITEM_SIZE and not self.heads and not self.less

    @property
    def stored(self) -> tuple[TensorEntry, ...]:
        """The tensors of the files that make it up; most are one themselves."""
        return (self,)


def read_safetensors_header(file: Path) -> list[TensorEntry]:
    """Every tensor of ``file``, in the order of its bytes.

    Raises:
        BadWeights: the file cannot be read or is truncated, or its header is not one of an honest writer.
    """
    try:
        length, file_size, raw = _read(file)
    except OSError as error:
        raise _bad(file, f"it cannot be read ({error.strerror})") from error
    header = _parse(file, raw)
    header.pop("__metadata__", None)
    if len(header) >= MAX_TENSORS:
        raise _bad(file, f"its header has {len(header)} entries, {MAX_TENSORS} or more are refused")
    entries = [_entry(file, name, value, 8 + length) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.size))
    _check_layout(file, entries, 8 + length, file_size)
    return entries


def _read(file: Path) -> tuple[int, int, bytes]:
    """The header's length, the file's, and the header. Raises as its caller, or OSError."""
    with file.open("rb") as stream:
        file_size = stream.seek(0, 2)
        stream.seek(0)
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length < 2 or length > file_size - 8:
            what, check = what_it_is(file)
            if what:
                raise BadWeights(f"{file} is {what}", check=check)
            raise _bad(file, f"its header of {length} bytes does not fit into its {file_size} bytes")
        if length > MAX_HEADER:
            raise _bad(file, f"its header claims {length} bytes, more than the {MAX_HEADER} that we read")
        return length, file_size, stream.read(length)


def _parse(file: Path, raw: bytes) -> dict[str, object]:
    try:
        # Twice the same name is how one tensor hides behind another.
        header = parse(raw, values=MAX_VALUES, pairs=_no_duplicates)
    except ValueError as error:
        raise _bad(file, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _bad(file, "its header is not a JSON object")
    return cast(dict[str, object], header)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(file: Path, name: str, value: object, data_start: int) -> TensorEntry:
    if not isinstance(value, dict):
        raise _bad(file, f"the entry of {name[:80]!r} is not an object")
    fields = cast(dict[str, object], value)
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise _bad(file, f"tensor {name[:80]!r} has dtype {str(dtype)[:20]!r}, which is not accepted")
    sizes, ends = _sizes(shape), _sizes(offsets)
    if sizes is None or len(sizes) > MAX_DIMENSIONS:
        raise _bad(file, f"tensor {name[:80]!r} has an impossible shape")
    if ends is None or len(ends) != 2 or ends[0] > ends[1]:
        raise _bad(file, f"tensor {name[:80]!r} has impossible offsets")
    begin, end = ends
    if math.prod(sizes) * ITEM_SIZE[dtype] != end - begin:
        raise _bad(
            file, f"tensor {name[:80]!r} has {end - begin} bytes, which is not its shape times its dtype"
        )
    return TensorEntry(name, dtype, sizes, file, data_start + begin, end - begin)


def _sizes(value: object) -> tuple[int, ...] | None:
    """A list of whole numbers that can be sizes; None when it is something else."""
    if not isinstance(value, list):
        return None
    items = cast(list[object], value)
    sizes = tuple(item for item in items if type(item) is int and 0 <= item < 2**48)
    return sizes if len(sizes) == len(items) else None


def _check_layout(file: Path, entries: list[TensorEntry], data_start: int, file_size: int) -> None:
    """Tensors follow one another without overlap or hole, from the header to the end of the file."""
    at = data_start
    for entry in entries:
        if entry.begin != at:
            kind = "overlaps another" if entry.begin < at else "leaves a hole before it"
            raise _bad(file, f"tensor {entry.name[:80]!r} {kind}")
        at += entry.size
    if at > file_size:
        raise _bad(file, f"it is truncated: {file_size} bytes where its header needs {at}")
    if at < file_size:
        raise _bad(file, f"{file_size - at} bytes follow its last tensor")


def _bad(file: Path, what: str) -> BadWeights:
    return BadWeights(
        f"{file}: {what}",
        check="copy or download the file again; it may be incomplete",
        next_command="shoal models list",
    )
