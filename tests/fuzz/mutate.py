"""Input that is almost honest, for the tests, where atheris is not there."""

from __future__ import annotations

import random
from collections.abc import Sequence

PIECES = (
    b"",
    b"\0",
    b"\xff" * 4,
    b"\x7f" + b"\xff" * 7,
    b"[" * 70,
    b'{"":',
    b'"',
    b"\\",
    b",",
    b"null",
    b"-1",
    b"1e999",
)
"""What readers stumble on."""


def changed(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of ``seeds``, with a few bytes flipped, cut out, doubled, or replaced by others."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 5)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice((0, 1, 4, 30)))
        match chance.randrange(4):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * chance.choice((1, 3, 50))
            case _:
                data[at:end] = chance.choice(PIECES)
    return bytes(data)
