"""Which codec a session's hidden states travel in: as exact as its links allow. Pure.

A session has one codec, which its client chooses when it opens it, and keeps over every loss of a hop: hops
send on in the codec that they were sent. So the bits of an answer do not depend on when a link was timed.

The rule compares what a decode step's message takes on a link with what the step takes to compute at a hop:

- A route in fp32 promises the bits of the whole model, so nothing may be rounded: float32, however slow.
- An unknown link is taken for a fast one: float32.
- float32 while it takes at most a tenth of the compute, or less than a step's way through two processes costs
  anyway: so it is on loopback and in a local network, where rounding would buy nothing that anybody notices.
- bfloat16 while that takes at most a quarter: half the bytes, at the rounding that a bf16 model has anyway.
- int8 while that takes no longer than the compute: a quarter of the bytes is nearly four times the speed of
  the link, at an error of 1/254 of the largest of 64 neighbours.
- int6 otherwise: however many steps are on their way, the link is what all of them wait for, and it carries
  1.3 times as many as in int8. Who speaks a version from before it is asked for int8 (``wire/versions.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from shoal.types import Codec, Format
from shoal.wire.payload import encoded_bytes

EXACT_SHARE = 0.1
ROUNDED_SHARE = 0.25
THIN_SHARE = 1.0
"""What sending may take of the time of computing, in float32, in bfloat16 and in int8."""
UNNOTICED_US = 300.0
"""Sending for less than this, in microseconds, is not worth an error."""
USUAL_US = 1000.0
"""Compute of one row at a hop, in microseconds, where none was timed: a span of a small model on a CPU."""


def choose_codec(format: Format, bytes_s: float | None, width: int, step_s: float) -> Codec:
    """The codec for hidden states of ``width`` over a link of ``bytes_s`` bytes a second.

    Args:
        bytes_s: ``None`` when the link is not known.
        step_s: what a decode step takes at a hop, in seconds; 0 when it is not known.
    """
    if format == "fp32" or bytes_s is None:
        return "float32"
    compute_us = 1e6 * step_s or USUAL_US
    us_per_byte = 1e6 / bytes_s
    if encoded_bytes(1, width, "float32") * us_per_byte <= max(UNNOTICED_US, EXACT_SHARE * compute_us):
        return "float32"
    if encoded_bytes(1, width, "bfloat16") * us_per_byte <= ROUNDED_SHARE * compute_us:
        return "bfloat16"
    return "int8" if encoded_bytes(1, width, "int8") * us_per_byte <= THIN_SHARE * compute_us else "int6"


def coarsest(codecs: Iterable[Codec]) -> Codec:
    """What the slowest of several links asks for; float32 where there is none."""
    order: tuple[Codec, ...] = get_args(Codec)
    return order[max(map(order.index, codecs), default=0)]
