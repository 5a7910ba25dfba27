"""Numpy's arrays as a message's payload, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from shoal.errors import RemoteProtocolError
from shoal.executor.arrays import Array
from shoal.types import ArrayType
from shoal.wire.inferring import ArraySpec, array_bytes


def pack_arrays(arrays: Mapping[int, Array]) -> tuple[tuple[ArraySpec, ...], bytes]:
    """What a message declares, and its payload: the arrays by their places in the manifest, in their
    order."""
    specs = tuple(
        ArraySpec(value, cast("ArrayType", array.dtype.name), tuple(int(size) for size in array.shape))
        for value, array in arrays.items()
    )
    return specs, b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())


def unpack_arrays(specs: Sequence[ArraySpec], payload: bytes | bytearray | memoryview) -> dict[int, Array]:
    """The arrays of a payload; they share its memory.

    Raises:
        RemoteProtocolError: it has another number of bytes than is declared.
    """
    if array_bytes(specs) != len(payload):
        raise RemoteProtocolError(f"{len(payload)} bytes of tensors where {array_bytes(specs)} are declared")
    view, at = memoryview(payload), 0
    found: dict[int, Array] = {}
    for spec in specs:
        raw = np.frombuffer(view[at : at + spec.size], np.uint8)
        # A truth that is neither 0 nor 1 is one to C++ that nobody has thought of.
        array = raw != 0 if spec.dtype == "bool" else raw.view(spec.dtype)
        found[spec.value] = array.reshape(spec.shape)
        at += spec.size
    return found
