"""What a swarm offers: which models, by whom, how fast, and how well answers can be protected. Pure.

All of it but who was found out is what nodes say of themselves. How reliable they are is known to whoever has
used them, and to nobody else: nodes say nothing of how long they have been there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from shoal.option_values import show_coins
from shoal.swarm.announcement import Announcement, Served
from shoal.swarm.coverage import in_one_format, in_order, most_relevant, runs
from shoal.swarm.names import name_of
from shoal.types import Numerics, PeerId, ProtectionLevel, Span

PEERS_LISTED = 256
MODELS_LISTED = 16
AUDITORS = 2
"""Peers that have a block, so that one can compute again what the other did."""
REPLICAS = 3
"""The same, so that three can be compared."""
CSV_COLUMNS = (
    *("model", "digest", "start", "end", "peer", "name", "format", "numerics", "device", "tokens_per_s"),
    *("tokens_free", "share", "attests", "found_out", "price"),
)


@dataclass(frozen=True, slots=True)
class MarketSpan:
    """What one node offers."""

    model: str
    digest: str
    start: int
    end: int
    peer: str
    name: str
    """What it is called where people read."""
    format: str
    numerics: str
    device: str
    tokens_per_s: float | None
    """Decode steps of one session through its span alone, as it measured them."""
    tokens_free: int
    share: float
    """Share of the time in which it computes."""
    attests: str
    """The hardware that it says to show; empty where it shows none."""
    found_out: bool
    """Whether audits of this machine have found that it computed something else."""
    price: str
    """What it asks for a million tokens of one block, in coins; empty where it asks nothing."""


@dataclass(frozen=True, slots=True)
class MarketModel:
    """What can be had of one model."""

    name: str
    digest: str
    n_blocks: int
    format: str
    peers: int
    complete: bool
    tokens_per_s: float | None
    """Of one session without ways between hops, of each block the fastest node; ``None``: not measured."""
    protection: tuple[ProtectionLevel, ...]
    """The levels that those who serve it allow."""


@dataclass(frozen=True, slots=True)
class Market:
    """All of it, as far as this machine knows the swarm."""

    swarm: str
    models: list[MarketModel]
    spans: list[MarketSpan]
    peers_in_all: int
    """Anybody can announce anything, so no more than some are listed."""


def market(swarm: str, announcements: Sequence[Announcement], found_out: Collection[PeerId]) -> Market:
    """Put together what is offered.

    Args:
        found_out: by this machine's audits.
    """
    good = [a for a in announcements if a.served and PeerId(a.peer) not in found_out]
    models = [
        _model(shape.name, shape.digest, shape.n_blocks, served)
        for shape, served in most_relevant(good, lambda _: None, MODELS_LISTED)
    ]
    listed = [a for a in in_order(announcements) if a.served][:PEERS_LISTED]
    spans = [_span(a, a.served, PeerId(a.peer) in found_out) for a in listed if a.served]
    return Market(swarm, models, spans, sum(a.served is not None for a in announcements))


def protection_of(n_blocks: int, served: Sequence[Served]) -> tuple[ProtectionLevel, ...]:
    """How answers of a model can be protected by those who serve it in one format."""
    exact = [one.span for one in served if one.numerics and Numerics.parse(one.numerics).exact]
    copies = _copies(exact, n_blocks)
    levels: list[ProtectionLevel] = []
    if _copies((one.span for one in served), n_blocks):
        levels.append("fast")
    if copies >= AUDITORS:
        levels.append("audited")
    if copies >= REPLICAS:
        levels.append("consensus")
    if _copies((one.span for one in served if one.attests), n_blocks):
        levels.append("attested")
    return tuple(levels)


def as_csv(found: Market) -> str:
    """The nodes as a table for other programs, with a line of names first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([_cell(getattr(span, name)) for name in CSV_COLUMNS] for span in found.spans)
    return text.getvalue()


def _cell(value: object) -> str:
    """A value for a spreadsheet, which would compute what begins like a formula: strangers wrote it."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _copies(spans: Iterable[Span], n_blocks: int) -> int:
    """How many peers have the block that the fewest have."""
    return min((count for _, count in runs(spans, n_blocks)), default=0)


def _model(name: str, digest: str, n_blocks: int, everybody: Sequence[Served]) -> MarketModel:
    format, _ = in_one_format(everybody)
    served = [one for one in everybody if one.format == format]
    levels = protection_of(n_blocks, served)
    # Of very many the first: it takes as long as there are pairs of them.
    speed = _speed(served[:PEERS_LISTED], n_blocks) if "fast" in levels else None
    return MarketModel(name, digest, n_blocks, format, len(served), "fast" in levels, speed, levels)


def _speed(served: Sequence[Served], n_blocks: int) -> float | None:
    """Tokens a second of one session where each block is computed by its fastest node."""
    edges = sorted({0, n_blocks, *(edge for one in served for edge in (one.start, one.end))})
    total_ms = 0.0
    for start, end in pairwise(edges):
        times = [one.step_ms / len(one.span) for one in served if one.start <= start and one.end >= end]
        if not times or not all(times):
            return None
        total_ms += (end - start) * min(times)
    return round(1000 / total_ms, 1) if total_ms else None


def _span(a: Announcement, served: Served, found_out: bool) -> MarketSpan:
    return MarketSpan(
        model=served.model,
        digest=served.digest,
        start=served.start,
        end=served.end,
        peer=a.peer,
        name=name_of(a.peer),
        format=served.format,
        numerics=served.numerics,
        device=served.device,
        tokens_per_s=round(1000 / served.step_ms, 1) if served.step_ms else None,
        tokens_free=served.tokens_free,
        share=served.share,
        attests=served.attests,
        found_out=found_out,
        price=show_coins(served.price.amount) if served.price else "",
    )
