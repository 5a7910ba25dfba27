"""Which span of a model, or of a graph, a node takes that chooses for itself: the swarm in, a span out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from shoal.errors import OutOfResources
from shoal.planning.placement import choose_span, fits_from
from shoal.planning.throughput import ServingPeer
from shoal.swarm.announcement import Served, carried_tokens_s, numerics_of
from shoal.swarm.member import Member
from shoal.types import ModelShape, Numerics, PeerId, Span


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """What a node is to serve some of."""

    shape: ModelShape
    numerics: Numerics
    """Which others serve the same."""
    bytes: Sequence[int]
    """Of each block's weights."""
    work: Sequence[float] | None = None
    """Of each block, in shares of a usual one; ``None``: they are alike."""


def choose_place(model: PlacedModel, room: int, member: Member, liars: Collection[PeerId] = ()) -> Span:
    """The span that the swarm lacks most and that fits into ``room`` bytes.

    Args:
        liars: who was found to compute something else.

    Raises:
        OutOfResources: not one block fits.
    """
    fits = fits_from(model.bytes, room)
    if not any(fits):
        unit = "segment" if model.shape.kind == "graph" else f"block in {model.numerics.format}"
        raise OutOfResources(
            f"one {unit} of {model.shape.name} takes {min(model.bytes) >> 20} MiB at the least, and there is "
            f"room for {room >> 20} MiB of weights",
            check="free memory, allow more, or choose a smaller --format",
            next_command="shoal serve MODEL --memory SIZE",
        )
    others = serving_peers(model, member, liars=liars)
    return choose_span(others, model.shape.n_blocks, fits, work=model.work)


def reservation(model: PlacedModel, span: Span) -> Served:
    """What a node announces while it loads its first span: others who choose then take it for served."""
    shape = model.shape
    # By what it computes it knows when it has loaded; until then it takes no session.
    numerics = replace(model.numerics, bits="modules")
    return Served(
        shape.name,
        shape.digest,
        shape.n_blocks,
        shape.hidden_size,
        shape.context,
        shape.vocab_size,
        span.start,
        span.end,
        model.numerics.format,
        tokens=0,
        tokens_free=0,
        sessions=0,
        step_ms=0.0,
        next_start=span.start,
        next_end=span.end,
        share=0.0,
        numerics=str(numerics),
    )


def serving_peers(
    model: PlacedModel, member: Member, *, before: PeerId | None = None, liars: Collection[PeerId] = ()
) -> list[ServingPeer]:
    """Who else serves the model, where it is or is going to be; not who has paused.

    Who loads its first span has paused, and is going there.

    Args:
        liars: who was found to compute something else: what they serve is as if nobody did.
        before: of the peers that are going, only those with a smaller peer id are taken to get there.
    """
    found = [
        (s.going if s.going and _goes(peer, before) else s.span, s)
        for peer, s in _others(model, member, liars)
        if s.share or (s.going and _goes(peer, before))
    ]
    return _placed(found)


def keeping_peers(
    model: PlacedModel, member: Member, *, before: PeerId | None = None, liars: Collection[PeerId] = ()
) -> list[ServingPeer]:
    """Who else serves the model now, where it is to stay: to whom alone blocks may be left.

    Args:
        liars: who was found to compute something else.
        before: of the peers that are going, only those with a smaller peer id are taken to leave.
    """
    found = [
        (s.span, s)
        for peer, s in _others(model, member, liars)
        if s.share and not (s.going and _goes(peer, before))
    ]
    return _placed(found)


def _goes(peer: PeerId, before: PeerId | None) -> bool:
    return before is None or peer < before


def _others(model: PlacedModel, member: Member, liars: Collection[PeerId]) -> list[tuple[PeerId, Served]]:
    """Who else announces blocks of the model that are computed as it is to be served."""
    member.directory.know([model.shape])  # who says another number of blocks for this digest lies
    return [
        (PeerId(a.peer), a.served)
        for a in member.directory.drawn(model.shape.digest, member.now(), model.numerics.format)
        if a.served
        and a.peer != member.network.peer
        and a.peer not in liars
        and model.numerics.admits(numerics_of(a.served))
    ]


def _placed(found: Sequence[tuple[Span, Served]]) -> list[ServingPeer]:
    known = sorted(served.speed for _, served in found if served.speed)
    # A node that does not say how fast it is is taken for a usual one, the median.
    usual = known[len(known) // 2] if known else 1.0
    return [ServingPeer(span, s.speed or usual, s.fits, carried_tokens_s(s)) for span, s in found]
