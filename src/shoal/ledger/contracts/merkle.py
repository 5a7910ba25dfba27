"""Trees over hashes, as ``Anchor.included`` reads them. Leaves and nodes have prefixes (RFC 6962)."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.errors import UsageError
from shoal.ledger.vouchers.typed_data import keccak256

MAX_LEAVES = 1 << 20


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over the hashes of what is to be anchored, 32 bytes each.

    Raises:
        UsageError: there are none, or more than :data:`MAX_LEAVES`.
    """
    return _levels(leaves)[-1][0]


def merkle_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """What is beside a leaf on the way to the root, from below.

    Raises:
        UsageError: as :func:`merkle_root`, or there is no such leaf.
    """
    levels = _levels(leaves)
    if not 0 <= index < len(leaves):
        raise UsageError(f"a tree of {len(leaves)} leaves has none with the number {index}")
    path: list[bytes] = []
    for level in levels[:-1]:
        path.append(level[index ^ 1])
        index //= 2
    return path


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """The tree, from its leaves to its root. A node that would be alone stands beside 32 zeros."""
    if not 0 < len(leaves) <= MAX_LEAVES:
        raise UsageError(f"a tree has 1 to {MAX_LEAVES} leaves, not {len(leaves)}")
    levels = [[keccak256(b"\0" + leaf) for leaf in leaves]]
    while len(levels[-1]) > 1:
        if len(levels[-1]) % 2:
            levels[-1].append(bytes(32))
        below = levels[-1]
        levels.append([keccak256(b"\1" + below[n] + below[n + 1]) for n in range(0, len(below), 2)])
    return levels
