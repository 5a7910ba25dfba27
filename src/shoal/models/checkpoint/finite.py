"""Numbers that are none: a weight that is NaN or infinite makes every answer of a model NaN.

They are looked for in the bytes that are hashed anyway: that takes a tenth longer than hashing alone.
"""

from __future__ import annotations

import numpy as np

from shoal.errors import BadWeights
from shoal.models.checkpoint.headers import ITEM_SIZE, TensorEntry

EXPONENT: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E4M3": (np.uint8, 0x7F),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E8M0": (np.uint8, 0xFF),
}
"""The bits of a floating-point number that are all set in NaN and infinity, and in no other (IEEE 754; of
8 bits OCP's, of which the first and the last have no infinity)."""
SCALES: dict[str, tuple[int, tuple[int, ...]]] = {
    "Q4_0": (18, (0,)),
    "Q4_1": (20, (0, 2)),
    "Q5_0": (22, (0,)),
    "Q5_1": (24, (0, 2)),
    "Q8_0": (34, (0,)),
    "Q2_K": (84, (80, 82)),
    "Q3_K": (110, (108,)),
    "Q4_K": (144, (0, 2)),
    "Q5_K": (176, (0, 2)),
    "Q6_K": (210, (208,)),
    "IQ4_NL": (18, (0,)),
    "IQ4_XS": (136, (0,)),
}
"""Of GGUF's types, the bytes of a block, and where in it lie the float16 that multiply its integers."""


def whole_bytes(entry: TensorEntry) -> int:
    """Bytes of what a tensor is whole numbers of: an element, or a block of a GGUF type."""
    if entry.dtype in ITEM_SIZE:
        return ITEM_SIZE[entry.dtype]
    from shoal.models.gguf.weights import block_size  # noqa: PLC0415 - the gguf package, which few need

    return block_size(entry.dtype)[1]


def check_finite(entry: TensorEntry, raw: memoryview) -> None:
    """Refuse bytes of a tensor, whole elements, some of which are no finite numbers.

    Raises:
        BadWeights: names the tensor.
    """
    if not len(raw):
        return
    if entry.dtype in SCALES:
        size, places = SCALES[entry.dtype]
        blocks = np.frombuffer(raw, np.uint8).reshape(-1, size)
        numbers = [np.ascontiguousarray(blocks[:, at : at + 2]).view(np.uint16) for at in places]
        kind, exponent = EXPONENT["F16"]
    elif entry.dtype in EXPONENT:
        kind, exponent = EXPONENT[entry.dtype]
        numbers = [np.frombuffer(raw, kind)]
    else:
        return
    if any(int(np.bitwise_and(array, kind(exponent)).max()) == exponent for array in numbers):
        raise BadWeights(
            f"{entry.file}: tensor {entry.name[:80]!r} has elements that are NaN or infinite",
            check="get another version of the file: this one cannot give an answer",
            next_command="shoal models list",
        )
