"""A model that is arithmetic on whole numbers: any block left out, run twice, out of order or on a foreign
cache gives another token.

A block's state at a position is a hash of its state before and of what came in: what a position gives depends
on all positions before it, as with attention. Hidden states are 48 bits, as two whole numbers in float32.
"""

from __future__ import annotations

import itertools
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


class History:
    """The states of all blocks after some tokens."""

    def __init__(self) -> None:
        self._states = [0] * N_BLOCKS
        self._length = 0

    def append(self, token: int) -> int:
        """What the last block gives for one token more."""
        hidden = embed(token, self._length)
        for block in range(N_BLOCKS):
            hidden = self._states[block] = run_block(block, self._states[block], hidden, self._length)
        self._length += 1
        return hidden


def greedy(prompt: Sequence[int], count: int) -> list[int]:
    """The ``count`` tokens that follow ``prompt``: what every route must give."""
    history, tokens = History(), list(prompt)
    for position in range(len(prompt) + count - 1):
        hidden = history.append(tokens[position])
        if position >= len(prompt) - 1:
            tokens.append(choose(hidden))
    return tokens[len(prompt) :]


def script(text: Sequence[int]) -> dict[int, int]:
    """What to choose to have said ``text``: for what the last block gives at a position, the next token.

    Whatever is computed wrongly is not in it, and gives another token.
    """
    history = History()
    return {history.append(token): following for token, following in itertools.pairwise(text)}
