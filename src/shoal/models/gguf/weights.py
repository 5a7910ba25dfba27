"""The tensors of a GGUF file as a safetensors file in float32, written a piece at a time.

A GGUF's blocks are small integers times a float16 scale plus a float16 minimum (Q4_1): the products need more
bits than bfloat16 or float16 have, so float32 is the smallest type that keeps what transformers computes from
the file when it loads it itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from gguf import dequantize
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

from shoal.errors import UnsupportedModel
from shoal.models.gguf.header import GgufTensor, bad
from shoal.progress import Progress

PIECE = 1 << 16
"""Elements that are converted at once: what numpy makes on the way stays in the processor's cache. With 16
times as many, a conversion takes 1.6 times as long."""


@dataclass(frozen=True, slots=True)
class TensorPlacement:
    """A tensor of the checkpoint, and the one of the GGUF file that it is made of."""

    name: str
    source: GgufTensor
    heads: int = 0
    """How many heads the rows are of, if they are in llama.cpp's order: pairs that rotate together are
    neighbours there, where transformers has halves; 0: the rows are in order."""
    less: float = 0.0
    """What is taken off each element: Gemma's norms are stored with 1 added."""


def write_weights(tensors: Sequence[TensorPlacement], file: Path, progress: Progress) -> None:
    """Write ``tensors`` to ``file``, in the order and with the header that safetensors itself writes.

    Raises:
        BadWeights: a GGUF file became shorter while it was read.
        UnsupportedModel: the gguf package cannot unpack a type of block.
        OSError: the disk is full.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    ordered = sorted(tensors, key=lambda placed: placed.name)
    for placed in ordered:
        begin, end = end, end + 4 * math.prod(placed.source.shape)
        header[placed.name] = {
            "dtype": "F32",
            "shape": list(placed.source.shape),
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with file.open("wb") as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        for done, placed in enumerate(ordered):
            progress("Converting", done, len(ordered))
            for piece in _pieces(placed):
                out.write(piece.data)
    progress("Converting", len(ordered), len(ordered))


def read_floats(tensor: GgufTensor) -> NDArray[np.float32]:
    """A small tensor whole, ``tensor.shape``. Raises as :func:`write_weights`."""
    return np.concatenate(list(_pieces(TensorPlacement("", tensor)))).reshape(tensor.shape)


def _pieces(placed: TensorPlacement) -> Iterator[NDArray[np.float32]]:
    """The elements of a tensor, in order."""
    source = placed.source
    elements, size = GGML_QUANT_SIZES[source.type]
    if placed.heads:
        yield _floats(_reordered(source, placed.heads), source)
        return
    left, at = source.size, source.begin
    with source.file.open("rb") as stream:
        stream.seek(at)
        while left:
            raw = np.fromfile(stream, np.uint8, min(left, max(PIECE // elements, 1) * size))
            if not len(raw) or len(raw) % size:
                raise bad(source.file, "it was cut while it was read")
            left -= len(raw)
            piece = _floats(raw, source)
            yield piece - np.float32(placed.less) if placed.less else piece


def _reordered(source: GgufTensor, heads: int) -> NDArray[np.uint8]:
    """The bytes of a matrix, its rows in transformers' order."""
    with source.file.open("rb") as stream:
        stream.seek(source.begin)
        raw = np.fromfile(stream, np.uint8, source.size)
    if len(raw) < source.size:
        raise bad(source.file, "it was cut while it was read")
    pairs = raw.reshape(heads, source.shape[0] // heads // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)


def _floats(raw: NDArray[np.uint8], source: GgufTensor) -> NDArray[np.float32]:
    try:
        with np.errstate(all="ignore"):  # scales that overflow are the file's, and are kept
            found = cast("NDArray[np.float32]", dequantize(raw[None], source.type))
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"{source.file}: the gguf package cannot unpack blocks of type {source.type.name}",
            check="use another quantisation of the model, for example Q4_K_M or Q8_0",
        ) from error
    return np.ascontiguousarray(found.reshape(-1))
