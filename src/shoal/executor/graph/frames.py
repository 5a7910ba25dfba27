"""What we and the processes that compute for us say to each other: a header, and numbers behind it.

A frame is two lengths, little-endian; a msgpack header; and a payload.
"""

from __future__ import annotations

from struct import Struct as Format
from typing import BinaryIO

import msgspec

from shoal.wire.fields import MAX_PAYLOAD
from shoal.wire.inferring import ArraySpec

LENGTHS = Format("<IQ")
LONGEST_HEADER = 1 << 16
LONGEST_PAYLOAD = MAX_PAYLOAD
"""What goes in one message between peers goes in one frame."""


class LoadSegments(msgspec.Struct, tag="load"):
    """Load a span of an imported graph."""

    folder: str
    start: int
    end: int
    memory: int
    """Bytes that the process may take in all."""
    fast: bool = False
    """Whether to optimise the span by itself."""


class RunSegments(msgspec.Struct, tag="run"):
    """Run some segments of the span; payload: what they take."""

    start: int
    end: int
    arrays: tuple[ArraySpec, ...]


class SegmentsDone(msgspec.Struct, tag="done"):
    """Loaded, or run; payload: what they give."""

    arrays: tuple[ArraySpec, ...] = ()


class SegmentsFault(msgspec.Struct, tag="fault"):
    """It cannot be done."""

    message: str


SegmentsRequest = LoadSegments | RunSegments
SegmentsReply = SegmentsDone | SegmentsFault


def write_frame(stream: BinaryIO, header: msgspec.Struct, payload: bytes = b"") -> None:
    """Write one frame, and flush."""
    encoded = msgspec.msgpack.encode(header)
    stream.write(LENGTHS.pack(len(encoded), len(payload)) + encoded)
    stream.write(payload)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[bytes, bytearray] | None:
    """A frame's header and its payload; ``None`` where the stream ends, or a length is beyond all bounds."""
    lengths = _exactly(stream, LENGTHS.size)
    if lengths is None:
        return None
    header_size, payload_size = LENGTHS.unpack(lengths)
    if header_size > LONGEST_HEADER or payload_size > LONGEST_PAYLOAD:
        return None
    header, payload = _exactly(stream, header_size), _exactly(stream, payload_size)
    return None if header is None or payload is None else (bytes(header), payload)


def _exactly(stream: BinaryIO, size: int) -> bytearray | None:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        read = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not read:
            return None
        filled += read
    return data
