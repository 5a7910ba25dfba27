"""Which blocks of which models announcements cover. Pure.

Whoever announces makes up how many blocks a model has. So what this costs, and what it gives, grows with the
number of announcements and never with that of blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from shoal.routing.formats import ranked
from shoal.swarm.announcement import Announcement, Served, format_of
from shoal.types import Digest, Format, ModelShape, Span


def in_order(announcements: Iterable[Announcement]) -> list[Announcement]:
    """Peers as they are shown: by model, then in the order of their blocks."""
    return sorted(announcements, key=lambda a: (a.served.model, a.served.span, a.peer) if a.served else ("",))


def by_model(announcements: Iterable[Announcement]) -> dict[str, list[Served]]:
    """What is served of each model, by its digest, in formats that this release knows."""
    found: dict[str, list[Served]] = {}
    for announcement in announcements:
        if announcement.served is not None and format_of(announcement.served) is not None:
            found.setdefault(announcement.served.digest, []).append(announcement.served)
    return found


def most_relevant(
    announcements: Iterable[Announcement], known: Callable[[Digest], ModelShape | None], count: int
) -> list[tuple[ModelShape, list[Served]]]:
    """At most ``count`` models, and who serves them: first those that are here, then those that most serve.

    Args:
        known: gives the shape of a model that is on this machine. Of others it is what most say, and who says
            something else is left out.
    """
    by_digest = by_model(announcements)
    order = sorted(by_digest, key=lambda digest: (known(Digest(digest)) is None, -len(by_digest[digest])))
    found: list[tuple[ModelShape, list[Served]]] = []
    for digest in order[:count]:
        served = by_digest[digest]
        shape = known(Digest(digest)) or shape_of(served)
        found.append((shape, [one for one in served if one.n_blocks == shape.n_blocks]))
    return found


def shape_of(served: Iterable[Served]) -> ModelShape:
    """What a model looks like that is not here: as most of those say who serve it, of equals the first."""
    shapes = Counter(one.shape for one in served)
    return shapes.most_common(1)[0][0]


def in_one_format(served: Sequence[Served]) -> tuple[Format, list[Span]]:
    """The format in which a client that knows nobody would take a model, and the spans in it.

    Args:
        served: as :func:`by_model` has it.
    """
    offered: list[tuple[Format, Span, bool]] = []
    for one in served:
        if (format := format_of(one)) is not None:
            offered.append((format, one.span, False))
    best = ranked(offered, Span(0, served[0].n_blocks))[0]
    return best, [one.span for one in served if one.format == best]


def runs(spans: Iterable[Span], n_blocks: int) -> list[tuple[Span, int]]:
    """How many of ``spans`` have each block: neighbouring blocks with as many together, in order.

    What it takes grows with the number of spans, and not with that of blocks, which anybody makes up.
    """
    change = Counter[int]({0: 0, n_blocks: 0})
    for span in spans:
        change[min(span.start, n_blocks)] += 1
        change[min(span.end, n_blocks)] -= 1
    found: list[tuple[Span, int]] = []
    count = 0
    places = sorted(place for place, by in change.items() if by or place in (0, n_blocks))
    for start, end in pairwise(places):
        count += change[start]
        found.append((Span(start, end), count))
    return found


def coverage(spans: Iterable[Span], n_blocks: int) -> list[int]:
    """How many of ``spans`` have each block."""
    return [count for span, count in runs(spans, n_blocks) for _ in range(len(span))]
