"""How far two computations of the same rows are apart, where bits are no promise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoal.executor.codecs import decode
from shoal.trust.rows import WINDOW
from shoal.types import Codec


def residual_norm(ours: Sequence[bytes], theirs: Sequence[bytes], codec: Codec, width: int) -> float:
    """The norm of the difference in 32 rows, relative to that of our rows; of all windows the most.

    Args:
        ours: encoded rows, each by itself; as many as of ``theirs``.

    Raises:
        StepFailed: a row holds NaN or infinity.
    """
    most = 0.0
    for first in range(0, len(ours), WINDOW):
        pairs = zip(ours[first : first + WINDOW], theirs[first : first + WINDOW], strict=True)
        norm = apart = 0.0
        for one, other in pairs:
            mine = decode(one, codec, 1, width).astype(np.float64)
            norm += float(np.square(mine).sum())
            apart += float(np.square(mine - decode(other, codec, 1, width)).sum())
        most = max(most, (apart / norm) ** 0.5 if norm else float(apart > 0))
    return most
