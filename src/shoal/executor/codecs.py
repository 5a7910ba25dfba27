"""Hidden states as they travel: float32 in memory, one of three codecs on the wire.

========  ============================================================  =========================
codec     bytes of ``rows × width``                                     error of an element
========  ============================================================  =========================
float32   4 each, little-endian                                         none
bfloat16  2 each, rounded to the nearest even                           2⁻⁹ of itself
int8      a float32 scale for every 64 elements of a row, row by row;   1/254 of its block's
          then 1 each                                                   largest
========  ============================================================  =========================

int8 is dynamic and blockwise (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022): an
outlier coarsens its own 64 elements and no others. The scale is a float32 because residual streams have
outliers beyond 10⁴ and a float16 scale would save no more than 3% of the bytes. How many bytes a payload must
have, :func:`shoal.wire.payload.encoded_bytes` says; the wire has checked it before it comes here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from shoal.errors import StepFailed
from shoal.executor.arrays import Floats, address, empty
from shoal.executor.kernels.c_kernels import library
from shoal.types import Codec
from shoal.wire.framing import Payload
from shoal.wire.payload import INT8_BLOCK, encoded_bytes

NUMBER: dict[Codec, int] = {"float32": 0, "bfloat16": 1, "int8": 2}
"""As in native/codecs.h."""
TINY = 1e-30
"""A block whose largest element is below this travels as zeros: its scale would lose its precision."""
MAX_SCALE = float(np.finfo(np.float32).max) / 128
"""Beyond this, an element of the block could not be held in float32."""


def encode(hidden: Floats, codec: Codec) -> bytes:
    """The bytes of ``hidden``, float32 ``[rows, width]``.

    Raises:
        StepFailed: a value is NaN or infinite, or too large for the codec: what follows would be noise.
    """
    rows, width = hidden.shape
    if not rows:
        return b""
    given = np.ascontiguousarray(hidden)
    if (native := library()) is None:
        return _encode_with_numpy(given, codec)
    encoded = ctypes.create_string_buffer(encoded_bytes(rows, width, codec))
    _expect(native.encode_rows(address(given), rows, width, NUMBER[codec], encoded))
    return encoded.raw


def decode(payload: Payload, codec: Codec, rows: int, width: int) -> Floats:
    """Hidden states, float32 ``[rows, width]``.

    Raises:
        StepFailed: the payload has another size, or a value is NaN or infinite.
    """
    if len(payload) != encoded_bytes(rows, width, codec):
        raise StepFailed(f"{len(payload)} bytes are not {rows}×{width} elements in {codec}")
    if not rows:
        return empty((0, width))
    if (native := library()) is None:
        return _decode_with_numpy(payload, codec, rows, width)
    hidden = empty((rows, width))
    _expect(native.decode_rows(bytes(payload), rows, width, NUMBER[codec], address(hidden)), arrived=True)
    return hidden


def split_rows(payload: bytes, codec: Codec, rows: int, width: int) -> list[bytes]:
    """Each of ``rows`` encoded rows by itself: what :func:`encode` makes of that row alone."""
    if codec != "int8":
        size = len(payload) // rows
        return [payload[row * size : (row + 1) * size] for row in range(rows)]
    scales = 4 * -(-width // INT8_BLOCK)
    return [
        payload[row * scales : (row + 1) * scales]
        + payload[rows * scales + row * width : rows * scales + (row + 1) * width]
        for row in range(rows)
    ]


def join_rows(rows: Sequence[bytes], codec: Codec, width: int) -> bytes:
    """The opposite of :func:`split_rows`."""
    if codec != "int8":
        return b"".join(rows)
    scales = 4 * -(-width // INT8_BLOCK)
    return b"".join(row[:scales] for row in rows) + b"".join(row[scales:] for row in rows)


def _encode_with_numpy(array: Floats, codec: Codec) -> bytes:
    if codec == "float32":
        _expect(bool(np.isfinite(array).all()))
        return array.tobytes()
    return _to_bfloat16(array) if codec == "bfloat16" else _to_int8(array)


def _decode_with_numpy(payload: Payload, codec: Codec, rows: int, width: int) -> Floats:
    if codec == "int8":
        return _from_int8(payload, rows, width)
    if codec == "float32":
        array = np.frombuffer(bytearray(payload), np.float32)
    else:
        array = (np.frombuffer(payload, np.uint16).astype(np.uint32) << 16).view(np.float32)
    _expect(bool(np.isfinite(array).all()), arrived=True)
    return array.reshape(rows, width)


def _to_bfloat16(array: Floats) -> bytes:
    """The upper halves, rounded to the nearest even."""
    bits = array.view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + 0x7FFF)
    # The largest floats round up to infinity.
    _expect(bool(np.isfinite(rounded.view(np.float32)).all()) and bool(np.isfinite(array).all()))
    return (rounded >> 16).astype(np.uint16).tobytes()


def _to_int8(array: Floats) -> bytes:
    rows, width = array.shape
    if width % INT8_BLOCK:
        array = np.pad(array, ((0, 0), (0, -width % INT8_BLOCK)))
    blocks = array.reshape(rows, -1, INT8_BLOCK)
    largest = np.maximum(blocks.max(-1), -blocks.min(-1))
    _expect(bool(np.isfinite(largest).all()))
    scales = np.where(largest < TINY, np.float32(0), largest / np.float32(127))
    # A block of zeros has the scale 0; divided by infinity it stays zeros.
    steps = blocks / np.where(scales > 0, scales, np.float32(np.inf))[..., None]
    elements = np.rint(steps, out=steps).astype(np.int8).reshape(rows, -1)[:, :width]
    return scales.tobytes() + elements.tobytes()


def _from_int8(payload: Payload, rows: int, width: int) -> Floats:
    n_blocks = -(-width // INT8_BLOCK)
    scales = np.frombuffer(payload, np.float32, rows * n_blocks).reshape(rows, n_blocks)
    # NaN fails both comparisons.
    _expect(bool(((scales >= 0) & (scales <= MAX_SCALE)).all()), arrived=True)
    elements = np.frombuffer(payload, np.int8, rows * width, scales.nbytes).reshape(rows, width)
    if width % INT8_BLOCK:
        return elements * np.repeat(scales, INT8_BLOCK, axis=1)[:, :width]
    return (elements.reshape(rows, n_blocks, INT8_BLOCK) * scales[..., None]).reshape(rows, width)


def _expect(finite: int, *, arrived: bool = False) -> None:
    if finite:
        return
    if arrived:
        raise StepFailed(
            "hidden states that are not finite arrived",
            check="check the node that serves the blocks before these",
        )
    raise StepFailed(
        "the hidden states are not finite",
        check="check the model's weights, and the node that serves the blocks before these",
    )
