"""A model that is arithmetic on whole numbers: any block left out, run twice, out of order or on a foreign
cache gives another token.

A block's state at a position is a hash of its state before and of what came in: what a position gives depends
on all positions before it, as with attention. Hidden states are 48 bits, as two whole numbers in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from struct import Struct

from shoal.models.store.local_model import LocalModel
from shoal.types import Digest, ModelShape

N_BLOCKS = 24
WIDTH = 2
VOCAB = 512
CONTEXT = 4096
DIGEST = Digest("sha256:" + "5" * 64)
SHAPE = ModelShape("simulated", DIGEST, N_BLOCKS, WIDTH, CONTEXT, VOCAB)
MODEL = LocalModel("simulated", Path(), DIGEST, SHAPE, 0, "F32", "simulated")

_MASK = (1 << 64) - 1
_ROW = Struct("<2f")
_HALF = (1 << 24) - 1


def mix(*values: int) -> int:
    """48 bits that depend on every value and on their order."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = ((state ^ value) * 0xFF51AFD7ED558CCD) & _MASK
        state ^= state >> 32
    return state & 0xFFFFFFFFFFFF


def embed(token: int, position: int) -> int:
    """What the first block receives."""
    return mix(token, position, 1)


def run_block(block: int, before: int, hidden: int, position: int) -> int:
    """A block's state at ``position``, and what it passes on; ``before`` is its state one position
    earlier."""
    return mix(before, hidden, block, position)


def choose(hidden: int) -> int:
    """The token that follows what the last block gave."""
    return mix(hidden, 7) % VOCAB


def pack(rows: Sequence[int]) -> bytes:
    """Hidden states as float32."""
    return b"".join(_ROW.pack(row & _HALF, row >> 24) for row in rows)


def unpack(payload: bytes | bytearray) -> list[int]:
    """The opposite of :func:`pack`."""
    return [int(low) | int(high) << 24 for low, high in _ROW.iter_unpack(payload)]


def greedy(prompt: Sequence[int], count: int) -> list[int]:
    """The ``count`` tokens that follow ``prompt``: what every route must give."""
    states = [0] * N_BLOCKS
    tokens = list(prompt)
    for position in range(len(prompt) + count - 1):
        hidden = embed(tokens[position], position)
        for block in range(N_BLOCKS):
            hidden = states[block] = run_block(block, states[block], hidden, position)
        if position >= len(prompt) - 1:
            tokens.append(choose(hidden))
    return tokens[len(prompt) :]
