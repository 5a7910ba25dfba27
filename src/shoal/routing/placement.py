"""Which span a joining node should serve. Pure: coverage and what fits in, a span out."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.types import Span


def choose_span(coverage: Sequence[int], fits: int) -> Span:
    """The span of at most ``fits`` blocks that the swarm lacks most.

    A node takes as many blocks as fit. Of all such windows it takes the one whose weakest block has the
    fewest replicas, then whose replicas sorted from the weakest are fewest, then the first: the rule of
    Petals (Borzunov et al. 2023, section 3.2, on replicas where Petals counts throughput).

    Args:
        coverage: how many peers serve each block.
        fits: how many blocks this node has memory for.

    Raises:
        ValueError: not one block fits.
    """
    if fits < 1:
        raise ValueError("not one block fits")
    length = min(fits, len(coverage))
    windows = (Span(start, start + length) for start in range(len(coverage) - length + 1))
    return min(windows, key=lambda span: (sorted(coverage[span.start : span.end]), span.start))
