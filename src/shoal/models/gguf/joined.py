"""Several GGUF files of one model put into one, for a reader that knows of one alone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from shoal.models.gguf.header import MAGIC, GgufTensor, bad
from shoal.models.gguf.splits import Gguf

ALIGNMENT = 32


def join(gguf: Gguf, out: Path) -> Path:
    """Write ``out``, with the pairs of the first file and the tensors of all; returns it.

    Raises:
        BadWeights: a file became shorter while it was read.
        OSError: the disk is full.
    """
    alignment = gguf.pairs.get("general.alignment", ALIGNMENT)
    assert isinstance(alignment, int)  # read_gguf_header has checked it
    tensors = list(gguf.tensors.values())
    table = b""
    offset = 0
    for tensor in tensors:
        table += _info(tensor, offset)
        offset += -(-tensor.size // alignment) * alignment
    begin, end = gguf.headers[0].pairs_at
    with out.open("wb") as joined:
        joined.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(gguf.pairs)))
        _copy(gguf.file, begin, end - begin, joined)
        joined.write(table)
        for tensor in tensors:
            joined.write(bytes(-joined.tell() % alignment))
            _copy(tensor.file, tensor.begin, tensor.size, joined)
    return out


def _info(tensor: GgufTensor, offset: int) -> bytes:
    name = tensor.name.encode()
    count = len(tensor.shape)
    return struct.pack(
        f"<Q{len(name)}sI{count}QIQ", len(name), name, count, *tensor.shape[::-1], tensor.type, offset
    )


def _copy(file: Path, begin: int, size: int, out: BinaryIO) -> None:
    with file.open("rb") as stream:
        stream.seek(begin)
        left = size
        while left:
            piece = stream.read(min(left, 1 << 20))
            if not piece:
                raise bad(file, "it was cut while it was read")
            out.write(piece)
            left -= len(piece)
