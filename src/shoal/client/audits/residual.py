"""How far two computations of the same rows are apart, where bits are no promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.executor.codecs import decode
from shoal.trust.fingerprint import FingerprintDistance, WindowRows, fingerprint_distance, take_fingerprint
from shoal.trust.rows import WINDOW
from shoal.types import Codec


@dataclass(frozen=True, slots=True)
class RowDistance:
    """Of all windows of 32 rows, in each number the most."""

    residual: float
    """The norm of the difference, relative to that of our rows."""
    fingerprint: FingerprintDistance
    """How far our rows are from the fingerprint of theirs."""


def row_distance(ours: Sequence[bytes], theirs: Sequence[bytes], codec: Codec, width: int) -> RowDistance:
    """How far rows that a hop shows are from those that an auditor has.

    Args:
        ours: encoded rows, each by itself; as many as of ``theirs``, and at least one.

    Raises:
        StepFailed: a row holds NaN or infinity.
    """
    found = RowDistance(0.0, FingerprintDistance(0, 0, 0.0, 0.0))
    for first in range(0, len(ours), WINDOW):
        mine, shown = (_decoded(rows[first : first + WINDOW], codec, width) for rows in (ours, theirs))
        norm = float(np.linalg.norm(mine.astype(np.float64)))
        apart = float(np.linalg.norm(mine.astype(np.float64) - shown))
        distance = fingerprint_distance(take_fingerprint(shown), mine)
        found = RowDistance(
            max(found.residual, apart / norm if norm else float(apart > 0)),
            found.fingerprint.worse(distance),
        )
    return found


def _decoded(rows: Sequence[bytes], codec: Codec, width: int) -> WindowRows:
    return np.concatenate([decode(one, codec, 1, width) for one in rows])
