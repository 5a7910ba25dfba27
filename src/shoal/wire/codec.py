"""Which codec a hop sends in: as exact as the link allows. Pure, with a memory of what steps took.

The rule compares what a message takes on the link with what the same rows take to compute at a hop:

- A route in fp32 promises the bits of the whole model, so nothing may be rounded: float32, however slow.
- An unknown link is taken for a fast one: float32, until the first long message has been timed.
- float32 while it takes at most a tenth of the compute, or less than a step's way through two processes costs
  anyway: so it is on loopback and in a local network, where rounding would buy nothing that anybody notices.
- bfloat16 while that takes at most a quarter: half the bytes, at the rounding that a bf16 model has anyway.
- int8 otherwise: the link is what the session waits for, and a quarter of the bytes is nearly four times the
  speed, at an error of 1/254 of the largest of 64 neighbours.
"""

from __future__ import annotations

from typing import Literal

from shoal.types import Codec, Format
from shoal.wire.payload import encoded_bytes

EXACT_SHARE = 0.1
ROUNDED_SHARE = 0.25
"""What sending may take of the time of computing, in float32 and in bfloat16."""
UNNOTICED_US = 300.0
"""Sending for less than this, in microseconds, is not worth an error."""
USUAL_US = 1000.0
"""Compute of one row at a hop, in microseconds, until one was timed: a span of a small model on a CPU."""


def choose_codec(format: Format, bytes_s: float | None, rows: int, width: int, compute_us: float) -> Codec:
    """The codec for ``rows × width`` elements over a link of ``bytes_s`` bytes a second.

    Args:
        bytes_s: ``None`` when no long message has been timed yet.
        compute_us: what these rows take at a hop, in microseconds.
    """
    if format == "fp32" or bytes_s is None:
        return "float32"
    us_per_byte = 1e6 / bytes_s
    if encoded_bytes(rows, width, "float32") * us_per_byte <= max(UNNOTICED_US, EXACT_SHARE * compute_us):
        return "float32"
    if encoded_bytes(rows, width, "bfloat16") * us_per_byte <= ROUNDED_SHARE * compute_us:
        return "bfloat16"
    return "int8"


class CodecChooser:
    """The choice for one session's sends; a decode step's compute and a prefill's are remembered apart."""

    def __init__(self, format: Format, pinned: Codec | Literal["auto"] = "auto") -> None:
        self._format: Format = format
        self._pinned: Codec | Literal["auto"] = pinned
        self._row_us: dict[bool, float] = {}

    def note(self, rows: int, compute_us: int) -> None:
        """Learn what a step of ``rows`` rows took at a hop."""
        row_us = compute_us / rows
        self._row_us[rows > 1] = 0.7 * self._row_us.get(rows > 1, row_us) + 0.3 * row_us

    def choose(self, bytes_s: float | None, rows: int, width: int) -> Codec:
        """The codec of the next send: what is pinned, else see :func:`choose_codec`."""
        if self._pinned != "auto":
            return self._pinned
        compute_us = rows * self._row_us.get(rows > 1, USUAL_US)
        return choose_codec(self._format, bytes_s, rows, width, compute_us)
