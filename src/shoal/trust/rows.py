"""Hashes of hidden states as they travel, row by row, and the Merkle roots of windows of them.

A row is one token's hidden states, encoded: its hash does not depend on what it was sent together with. A
window is 32 positions; its tree always has 32 leaves, of which those without a row are zeros, so that every
path has five hashes, and no inner node can be taken for a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from shoal.types import Codec
from shoal.wire.payload import INT8_BLOCK, encoded_bytes

WINDOW = 32
"""Positions of a session that share a receipt."""
HASH = 32
"""Bytes of a hash."""
EMPTY = bytes(HASH)
"""The leaf of a position of which there is no row."""


def row_hashes(payload: bytes | bytearray | memoryview, codec: Codec, rows: int, width: int) -> bytes:
    """The hashes of each of ``rows`` encoded rows, one after another."""
    if rows == 1:
        return blake3(payload).digest()
    view = memoryview(payload)
    if codec != "int8":
        size = encoded_bytes(1, width, codec)
        return b"".join(blake3(view[at : at + size]).digest() for at in range(0, rows * size, size))
    scales = 4 * -(-width // INT8_BLOCK)  # of each row, before the elements of all
    elements = view[rows * scales :]
    return b"".join(
        blake3(view[row * scales : (row + 1) * scales])
        .update(elements[row * width : (row + 1) * width])
        .digest()
        for row in range(rows)
    )


def root(leaves: bytes) -> bytes:
    """The Merkle root of a window of up to 32 leaves."""
    level = leaves.ljust(WINDOW * HASH, b"\0")
    while len(level) > HASH:
        pairs = range(0, len(level), 2 * HASH)
        level = b"".join(blake3(level[at : at + 2 * HASH]).digest() for at in pairs)
    return level


def windows(tokens: int) -> int:
    """How many windows ``tokens`` positions have."""
    return -(-tokens // WINDOW)


class RowLog:
    """What has passed one point of a session: a leaf for each position, as it was last."""

    def __init__(self, leaves: bytes | bytearray = b"") -> None:
        self._leaves = bytearray(leaves)

    def __len__(self) -> int:
        """Positions."""
        return len(self._leaves) // HASH

    def note(self, position: int, tokens: int, hashes: bytes) -> None:
        """A step of ``tokens`` tokens from ``position`` on, of whose last rows these are the hashes.

        What was noted from there on is forgotten: the session has gone back.
        """
        leaves = self._leaves
        del leaves[position * HASH :]
        leaves += bytes(((position + tokens) * HASH) - len(leaves) - len(hashes))
        leaves += hashes

    def forget(self, position: int) -> None:
        """Of what is before ``position`` there are no rows any more."""
        end = min(position * HASH, len(self._leaves))
        self._leaves[:end] = bytes(end)

    def copy(self, tokens: int) -> RowLog:
        """The first ``tokens`` positions, as they are now."""
        return RowLog(self._leaves[: tokens * HASH])

    def leaf(self, position: int) -> bytes:
        """The leaf of a position; ``EMPTY`` beyond the last."""
        return bytes(self._leaves[position * HASH : (position + 1) * HASH]) or EMPTY

    def window(self, number: int, among: int | None = None) -> tuple[int, bytes]:
        """Which positions of a window have a row, as bits with the first one lowest, and the Merkle root.

        Args:
            among: of these positions alone; those without a row here have none either way.
        """
        first = number * WINDOW
        leaves = bytearray(self._leaves[first * HASH : (first + WINDOW) * HASH])
        held = 0
        for index in range(len(leaves) // HASH):
            place = slice(index * HASH, (index + 1) * HASH)
            if among is not None and not among >> index & 1:
                leaves[place] = EMPTY
            elif any(leaves[place]):
                held |= 1 << index
        return held, root(bytes(leaves))


def row_log(rows: Sequence[bytes]) -> RowLog:
    """The hashes of encoded rows, each by itself, from the first position on."""
    return RowLog(b"".join(blake3(row).digest() for row in rows))
