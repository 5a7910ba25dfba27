"""Hidden states as they travel: float32 in memory, one of four codecs on the wire.

========  ============================================================  =========================
codec     bytes of ``rows × width``                                     error of an element
========  ============================================================  =========================
float32   4 each, little-endian                                         none
bfloat16  2 each, rounded to the nearest even                           2⁻⁹ of itself
int8      a float32 scale for every 64 elements of a row, row by row;   1/254 of its block's
          then 1 each                                                   largest
int6      of each row: the places of its outliers, 1 each; their        1/62 of its block's
          values in bfloat16; a bfloat16 scale for every 64 elements;   largest beside the
          then 6 bits each, four in three bytes                         outliers
========  ============================================================  =========================

int8 is dynamic and blockwise (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022): an
outlier coarsens its own 64 elements and no others. The scale is a float32 because residual streams have
outliers beyond 10⁴ and a float16 scale would save no more than 3% of the bytes.

int6 has a fourth of int8's steps, so what is much larger than its neighbours must not set their scale: of
every 256 elements of a row the three largest travel by themselves (as outliers do in "SpQR", Dettmers et
al., 2023), and have zeros among the others. Places are counted from the group's first element and ascend.
That makes 6.53 bits an element, 0.77 of int8's bytes. By groups and not by rows, a place is one byte in rows
of any width.

How many bytes a payload must have, :func:`shoal.wire.payload.encoded_bytes` says; the wire has checked it
before it comes here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import StepFailed
from shoal.executor.arrays import Floats, address, empty, widen
from shoal.executor.kernels.c_kernels import library
from shoal.types import Codec
from shoal.wire.framing import Payload
from shoal.wire.payload import INT6_GROUP, INT6_OUTLIERS, INT8_BLOCK, encoded_bytes, int6_outliers

NUMBER: dict[Codec, int] = {"float32": 0, "bfloat16": 1, "int8": 2, "int6": 3}
"""As in native/codecs.h."""
TINY = 1e-30
"""A block whose largest element is below this travels as zeros: its scale would lose its precision."""
MAX_SCALE = float(np.finfo(np.float32).max) / 128
"""Beyond this, an element of a block in int8 could not be held in float32."""
MAX_INT6_SCALE = float(np.finfo(np.float32).max) / 32
_SIX_BITS = np.array([0, 6, 12, 18], np.uint32)
_BYTES = np.array([0, 8, 16], np.uint32)


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
        StepFailed: the payload has another size, a value is NaN or infinite, or int6's places are not in
            order.
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
    if codec == "bfloat16":
        return _rounded(array).tobytes()
    return _to_int8(array) if codec == "int8" else _to_int6(array)


def _decode_with_numpy(payload: Payload, codec: Codec, rows: int, width: int) -> Floats:
    if codec == "int8":
        return _from_int8(payload, rows, width)
    if codec == "int6":
        return _from_int6(payload, rows, width)
    if codec == "float32":
        array = np.frombuffer(bytearray(payload), np.float32)
    else:
        array = widen(np.frombuffer(payload, np.uint16))
    _expect(bool(np.isfinite(array).all()), arrived=True)
    return array.reshape(rows, width)


def _rounded(array: Floats) -> NDArray[np.uint16]:
    """In bfloat16: the upper halves, rounded to the nearest even."""
    bits = array.view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + 0x7FFF)
    # The largest floats round up to infinity.
    _expect(bool(np.isfinite(rounded.view(np.float32)).all()) and bool(np.isfinite(array).all()))
    return (rounded >> 16).astype(np.uint16)


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


def _to_int6(array: Floats) -> bytes:
    rows, width = array.shape
    _expect(bool(np.isfinite(array).all()))
    rest = _padded(array, INT6_GROUP)
    groups, places = rest.reshape(rows, -1, INT6_GROUP), int6_outliers(width)
    # Of equals the first. The last group's outliers may be fewer, and its padding is behind what it has.
    sizes = np.abs(groups)
    largest = np.argsort(-sizes, axis=-1, kind="stable")[..., :INT6_OUTLIERS]
    last = places - INT6_OUTLIERS * (groups.shape[1] - 1)
    largest[:, -1, last:] = INT6_GROUP  # none, and so sorted to the end
    largest = np.sort(largest, axis=-1).reshape(rows, -1)[:, :places]
    at = largest + _group_starts(places)
    outliers = _rounded(np.take_along_axis(array, at, 1))
    np.put_along_axis(rest, at, np.float32(0), 1)
    blocks = _padded(rest[:, :width], INT8_BLOCK).reshape(rows, -1, INT8_BLOCK)
    largest_left = np.abs(blocks).max(-1)
    scales = _rounded(np.where(largest_left < TINY, np.float32(0), largest_left / np.float32(31)))
    steps = widen(scales)
    elements = np.rint(blocks / np.where(steps > 0, steps, np.float32(np.inf))[..., None]).astype(np.int8)
    packed = _packed(elements.reshape(rows, -1)[:, :width])
    parts = [largest.astype(np.uint8), outliers.view(np.uint8), scales.view(np.uint8), packed]
    return np.concatenate(parts, 1).tobytes()


def _from_int6(payload: Payload, rows: int, width: int) -> Floats:
    places, n_blocks = int6_outliers(width), -(-width // INT8_BLOCK)
    encoded = np.frombuffer(payload, np.uint8).reshape(rows, -1)
    edges = np.cumsum([places, 2 * places, 2 * n_blocks])
    within, *halves, packed = (np.ascontiguousarray(part) for part in np.split(encoded, edges, 1))
    outliers, scales = (widen(part.view(np.uint16)) for part in halves)
    at = within + _group_starts(places)
    # NaN fails both comparisons.
    fits = np.isfinite(outliers).all() and ((scales >= 0) & (scales <= MAX_INT6_SCALE)).all()
    _expect(bool(fits and (at < width).all() and (np.diff(at, axis=1) > 0).all()), arrived=True)
    elements = _unpacked(packed, width)
    hidden = elements * np.repeat(scales, INT8_BLOCK, axis=1)[:, :width]
    np.put_along_axis(hidden, at, outliers, 1)
    return hidden


def _group_starts(places: int) -> NDArray[np.int64]:
    """Where the group of each of a row's outliers begins."""
    return np.arange(places) // INT6_OUTLIERS * INT6_GROUP


def _padded(array: NDArray[Any], multiple: int) -> NDArray[Any]:
    """A copy whose rows have zeros behind them, up to a multiple of so many elements."""
    return np.pad(array, ((0, 0), (0, -array.shape[1] % multiple)))


def _packed(elements: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Elements of 6 bits, four in three bytes, the first lowest; bits behind a row's last are zeros."""
    rows, width = elements.shape
    fours = (_padded(elements, 4).astype(np.uint32) & 63).reshape(rows, -1, 4) << _SIX_BITS
    words = fours.sum(-1, dtype="<u4")
    return words[..., None].view(np.uint8)[..., :3].reshape(rows, -1)[:, : (6 * width + 7) // 8]


def _unpacked(packed: NDArray[np.uint8], width: int) -> NDArray[np.int8]:
    threes = _padded(packed, 3).reshape(len(packed), -1, 3).astype(np.uint32)
    words = (threes << _BYTES).sum(-1, dtype=np.uint32)
    elements = (words[..., None] >> _SIX_BITS & 63).astype(np.int8)
    return ((elements ^ 32) - 32).astype(np.int8).reshape(len(packed), -1)[:, :width]


def _expect(finite: int, *, arrived: bool = False) -> None:
    if finite:
        return
    if arrived:
        raise StepFailed(
            "hidden states arrived that are not finite, or not encoded as they should be",
            check="check the node that serves the blocks before these",
        )
    raise StepFailed(
        "the hidden states are not finite",
        check="check the model's weights, and the node that serves the blocks before these",
    )
