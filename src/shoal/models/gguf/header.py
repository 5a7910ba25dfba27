"""Reading a GGUF file's header without trusting it.

The format (ggml, docs/gguf.md): magic, version and two counts; key-value pairs; each tensor's name, shape,
type and offset; then, aligned, the tensors' bytes. The ``gguf`` package reads it too, but makes an array of
numpy of every string: seconds for a vocabulary of 49,000, where this takes a tenth of one.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.checkpoint.headers import MAX_TENSORS, TensorEntry
from shoal.models.store.lookalikes import what_it_is

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER = 256 << 20
"""Bytes of the pairs and the table of tensors. A vocabulary of 262,000 with its merges takes 20 MB."""
MAX_PAIRS = 65_536
MAX_ITEMS = 4 << 20
"""Elements of all arrays together."""
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20

Scalar = str | int | float | bool
Value = Scalar | list[Scalar]

STRING, ARRAY = 8, 9
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How ``struct`` calls each type of value that has a fixed size."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    """Rows first, as torch and numpy have it."""
    file: Path
    begin: int
    """Its first byte, counted from the beginning of the file."""
    size: int
    """Bytes."""

    def entry(self, name: str, *, heads: int = 0, less: float = 0.0) -> TensorEntry:
        """The same place as a checkpoint's tensor ``name``; the rest is as :class:`TensorEntry` has it."""
        return TensorEntry(name, self.type.name, self.shape, self.file, self.begin, self.size, heads, less)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """One file's pairs and tensors."""

    file: Path
    pairs: dict[str, Value]
    tensors: tuple[GgufTensor, ...]
    pairs_at: tuple[int, int]
    """The first byte of the pairs, and the one behind the last."""


def read_gguf_header(file: Path) -> GgufHeader:
    """A GGUF file's header; takes a tenth of a second.

    Raises:
        BadWeights: the file is truncated, no GGUF file, or its header is not one that an honest writer makes.
        UnsupportedModel: an old version of the format, another byte order, or a type of tensor not known.
    """
    try:
        with file.open("rb") as stream:
            return _Reader(file, stream).header()
    except OSError as error:
        raise bad(file, f"it cannot be read ({error.strerror})") from error


class _Reader:
    def __init__(self, file: Path, stream: BufferedReader) -> None:
        self._file = file
        self._stream = stream
        self._size = stream.seek(0, 2)
        self._at = stream.seek(0)
        self._items = 0

    def header(self) -> GgufHeader:
        self._check_magic()
        tensor_count, pair_count = self._unpack("<QQ")
        if tensor_count >= MAX_TENSORS or pair_count > MAX_PAIRS:
            raise bad(self._file, f"its header claims {tensor_count} tensors and {pair_count} pairs")
        begin = self._at
        pairs: dict[str, Value] = {}
        for _ in range(pair_count):
            key = self._string()
            if key in pairs:
                raise bad(self._file, f"its header has the key {key[:80]!r} twice")
            pairs[key] = self._value(key)
        end = self._at
        table = [self._info() for _ in range(tensor_count)]
        data = self._aligned(pairs.get("general.alignment", 32))
        tensors = [
            GgufTensor(name, kind, shape, self._file, data + offset, size)
            for name, kind, shape, offset, size in table
        ]
        self._check_layout(tensors)
        return GgufHeader(self._file, pairs, tuple(tensors), (begin, end))

    def _check_magic(self) -> None:
        magic = self._stream.read(4)
        if magic != MAGIC:
            what, check = what_it_is(self._file)
            raise BadWeights(
                f"{self._file} is {what or 'no GGUF file'}", check=check or "check that it is the right file"
            )
        self._at = 4
        (version,) = self._unpack("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise UnsupportedModel(
                f"{self._file}: "
                + ("it is big-endian" if swapped else f"it has version {version} of the GGUF format"),
                check="get a newer file of the model: versions 2 and 3 are supported, little-endian",
            )

    def _take(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise bad(self._file, f"it is truncated: its header goes on behind its {self._size} bytes")
        if count > MAX_HEADER - self._at:
            raise bad(self._file, f"its header is larger than the {MAX_HEADER} bytes that we read")
        self._at += count
        return self._stream.read(count)

    def _unpack(self, format: str) -> tuple[int, ...]:
        return struct.unpack(format, self._take(struct.calcsize(format)))

    def _string(self) -> str:
        length = int.from_bytes(self._take(8), "little")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise bad(self._file, "a text of its header is not UTF-8") from error

    def _value(self, key: str) -> Value:
        (kind,) = self._unpack("<I")
        if kind == STRING:
            return self._string()
        if kind in FORMATS:
            return self._unpack("<" + FORMATS[kind])[0]
        if kind != ARRAY:
            raise bad(self._file, f"{key[:80]!r} has a value of type {kind}, which is none")
        kind, count = self._unpack("<IQ")
        self._items += count
        if self._items > MAX_ITEMS:
            raise bad(self._file, f"{key[:80]!r} has {count} elements, {MAX_ITEMS} in all are read")
        if kind == STRING:
            return [self._string() for _ in range(count)]
        if kind not in FORMATS:
            raise bad(self._file, f"{key[:80]!r} has elements of type {kind}, which are not accepted")
        return list(self._unpack(f"<{count}{FORMATS[kind]}"))

    def _info(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._unpack("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise bad(self._file, f"tensor {name[:80]!r} has {dimensions} dimensions")
        shape = self._unpack(f"<{dimensions}Q")[::-1]
        kind, offset = self._unpack("<IQ")
        if math.prod(shape) >= 2**48 or offset >= 2**63:
            raise bad(self._file, f"tensor {name[:80]!r} has an impossible shape or offset")
        try:
            known = GGMLQuantizationType(kind)
            elements, size = GGML_QUANT_SIZES[known]
        except (ValueError, KeyError) as error:
            raise UnsupportedModel(
                f"{self._file}: tensor {name[:80]!r} is of type {kind}, which the gguf package does not know",
                check="use another quantisation of the model, for example Q4_K_M or Q8_0",
            ) from error
        if shape[-1] % elements:
            raise bad(self._file, f"tensor {name[:80]!r} has rows that are no whole blocks")
        return name, known, shape, offset, math.prod(shape) // elements * size

    def _aligned(self, alignment: Value) -> int:
        if (
            not isinstance(alignment, int)
            or not 0 < alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise bad(self._file, f"its tensors are aligned to {str(alignment)[:20]}, not to a power of two")
        return math.ceil(self._at / alignment) * alignment

    def _check_layout(self, tensors: list[GgufTensor]) -> None:
        """No two tensors overlap, and all lie in the file; between them there may be padding."""
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise bad(self._file, "its header has a tensor twice")
        end = 0
        for tensor in sorted(tensors, key=lambda t: (t.begin, t.size)):
            if tensor.begin < end:
                raise bad(self._file, f"tensor {tensor.name[:80]!r} overlaps another")
            end = tensor.begin + tensor.size
        if end > self._size:
            raise bad(self._file, f"it is truncated: {self._size} bytes where its header needs {end}")


def bad(file: Path, what: str, check: str = "") -> BadWeights:
    """The error about a file that is damaged or dishonest."""
    return BadWeights(f"{file}: {what}", check=check or "download the file again; it may be incomplete")
