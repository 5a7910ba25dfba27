"""In which format a node holds a model. Pure.

``auto`` first follows the swarm: a route has one format, so a node in another one than its peers' would serve
nobody. Where nobody serves the model yet, the machine decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from shoal.types import Exactness, Format, Kv, Numerics, Span, covered, gaps

PARALLEL: tuple[Format, ...] = ("fp32", "bf16")
"""What a span over several processes can be held in."""


@dataclass(frozen=True, slots=True)
class FormatChoice:
    """A format, and why it was chosen, in words that complete "int8: …"."""

    format: Format
    why: str


def choose_format(
    asked: Format | Literal["auto"],
    stored: str,
    *,
    kernels: bool,
    accelerator: bool = False,
    published: bool = False,
    parallel: int = 1,
    served: Iterable[tuple[Format, Span]] = (),
) -> FormatChoice:
    """The format of a node that was asked for ``asked``.

    Args:
        stored: the dtype of most of the checkpoint's bytes, as safetensors names it, for example ``BF16``.
        kernels: whether our C kernels are built on this machine.
        accelerator: whether the node computes on one, which takes every format.
        published: whether the model was published as integers that a node can compute with.
        parallel: how many processes compute the node's span together.
        served: what peers serve of the model now, and in which format.
    """
    if asked == "published" and not published:
        return FormatChoice("bf16", "its weights were not published as integers that can be kept")
    if asked != "auto":
        return FormatChoice(asked, "it was asked for")
    possible = PARALLEL if parallel > 1 else get_args(Format)
    if (common := most_served(served, possible)) is not None:
        return FormatChoice(common, "the swarm serves the model in it")
    if parallel == 1 and (kernels or accelerator):
        if published:
            return FormatChoice("published", f"its weights were published as integers ({stored})")
        built = "the kernels are built here, and run it fastest for what it loses"
        return FormatChoice(
            "int8", built if kernels else "nodes on CPUs, which it shares routes with, run it fastest"
        )
    return _choose_exact(stored, parallel)


def _choose_exact(stored: str, parallel: int) -> FormatChoice:
    """Where nothing computes with integers."""
    reason = "several processes share the span" if parallel > 1 else "the kernels are not built here"
    if stored in ("BF16", "F16"):
        return FormatChoice("bf16", f"{reason}, and the checkpoint has 16 bits for a weight")
    return FormatChoice("fp32", f"{reason}, and the checkpoint has more than 16 bits for a weight")


def most_served(served: Iterable[tuple[Format, Span]], possible: Iterable[Format]) -> Format | None:
    """The format in which the most peers serve; of equals that of the most blocks, then the most exact.

    ``None`` when nothing is served in a ``possible`` one.
    """
    return next(iter(ranked([(format, span, False) for format, span in served], None, possible)), None)


def ranked(
    served: Sequence[tuple[Format, Span, bool]],
    wanted: Span | None,
    possible: Iterable[Format] = get_args(Format),
) -> list[Format]:
    """The formats in which a model is served, in the order in which a client tries them.

    First those that peers which have answered before cover alone, then those that are covered at all; among
    them by peers, then by blocks, then the most exact. So no announcement, however good, comes before what
    has proven to work, and one alone not before many.

    Args:
        served: format and span of each peer, and whether it has answered before.
        wanted: the blocks that a route is to cover; ``None`` where coverage does not matter.
    """
    seen = {format for format, _, _ in served}
    return sorted(
        (f for f in possible if f in seen),
        key=lambda format: _worth([entry for entry in served if entry[0] == format], wanted),
        reverse=True,
    )


def ranked_numerics(
    served: Sequence[tuple[Numerics, Span, bool]], wanted: Span, format: Format | None = None
) -> list[Numerics]:
    """By what a model is served, in the order in which a client tries it.

    The formats come as :func:`ranked` has them, and in each its numerics, those that cover ``wanted`` first.
    Where there are several of one version, format and kind of KV, sessions over all of them come last.

    Args:
        served: numerics and span of each peer, and whether it has answered before.
        format: where no other is wanted.
    """
    formats = ranked([(n.format, span, proven) for n, span, proven in served], wanted)
    found: list[Numerics] = []
    for one in formats if format is None else [format]:
        inside = [entry for entry in served if entry[0].format == one]
        # Of two that cover alike, the one whose bits mean more, then the one whose KV is as computed.
        names = sorted(
            {numerics for numerics, _, _ in inside},
            key=lambda n: (get_args(Exactness).index(n.bits), get_args(Kv).index(n.kv)),
        )
        found += sorted(names, key=lambda n: _worth([e for e in inside if e[0] == n], wanted), reverse=True)
        loose = [numerics.loose for numerics in names]
        found += [n for n in dict.fromkeys(loose) if loose.count(n) > 1]
    return found


def _worth(served: Sequence[tuple[object, Span, bool]], wanted: Span | None) -> tuple[bool, bool, int, int]:
    every = [span for _, span, _ in served]
    proven = [span for _, span, answered in served if answered]
    return _covers(proven, wanted), _covers(every, wanted), len(every), covered(every)


def _covers(spans: Sequence[Span], wanted: Span | None) -> bool:
    return wanted is not None and not gaps(spans, wanted.end, wanted.start)
