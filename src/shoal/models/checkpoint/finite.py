"""Numbers that are none: a weight that is NaN or infinite makes every answer of a model NaN.

They are looked for in the bytes that are hashed anyway: that takes a tenth longer than hashing alone.
"""

from __future__ import annotations

import numpy as np

from shoal.errors import BadWeights
from shoal.models.checkpoint.headers import TensorEntry

EXPONENT: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""The bits of a floating-point number that are all set in NaN and infinity, and in no other (IEEE 754)."""


def check_finite(entry: TensorEntry, raw: memoryview) -> None:
    """Refuse bytes of a tensor, whole elements, some of which are no finite numbers.

    Raises:
        BadWeights: names the tensor.
    """
    if entry.dtype not in EXPONENT or not len(raw):
        return
    kind, exponent = EXPONENT[entry.dtype]
    if int(np.bitwise_and(np.frombuffer(raw, kind), kind(exponent)).max()) == exponent:
        raise BadWeights(
            f"{entry.file}: tensor {entry.name[:80]!r} has elements that are NaN or infinite",
            check="get another version of the file: this one cannot give an answer",
            next_command="shoal models list",
        )
