"""What `shoal status` and `shoal peers` show, made from announcements. Pure: the caller brings the facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.cli.output import printable
from shoal.net.network import PeerConnection
from shoal.swarm.announcement import Announcement
from shoal.swarm.directory import by_model, coverage, in_one_format, in_order
from shoal.swarm.names import name_of
from shoal.types import PeerId, gaps

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

DRAWN_BLOCKS = 64
"""Blocks of a model are drawn one a character up to here; beyond, several share one."""


@dataclass(frozen=True, slots=True)
class PeerView:
    """One peer of the swarm as this machine sees it."""

    peer: str
    name: str
    """What it is called where people read."""
    path: str
    """``direct`` or ``relayed``; empty when we hold no connection to it."""
    address: str
    rtt_ms: float | None
    model: str
    start: int
    end: int
    format: str
    sessions: int
    tokens_free: int
    tokens_per_s: float | None
    """Decode steps of one session through its span alone, as it measured them."""
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model of which the swarm serves some blocks."""

    name: str
    digest: str
    format: str
    """The one of which the most blocks are served: a route has one format, and what follows is said of it."""
    n_blocks: int
    complete: bool
    missing: list[str]
    peers_per_block: list[int]


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole swarm, as far as this machine knows it."""

    swarm: str
    peer: str
    """Ourselves."""
    peers: list[PeerView] = field(default_factory=list[PeerView])
    models: list[ModelView] = field(default_factory=list[ModelView])


def overview(
    swarm: str,
    ourselves: PeerId,
    announcements: Iterable[Announcement],
    connections: Sequence[PeerConnection],
    rtt_s: Mapping[PeerId, float],
    now: float,
) -> Overview:
    """Put what is known of the swarm together, peers in the order of their blocks."""
    alive = in_order(announcements)
    held = {connection.peer: connection for connection in connections}
    peers = [_peer(a, held.get(PeerId(a.peer)), rtt_s.get(PeerId(a.peer)), now) for a in alive]
    return Overview(swarm, ourselves, peers, _models(alive))


def _peer(a: Announcement, held: PeerConnection | None, rtt_s: float | None, now: float) -> PeerView:
    served = a.served
    return PeerView(
        peer=a.peer,
        name=name_of(a.peer),
        path=held.path if held else "",
        address=held.address if held else (a.libp2p[0] if a.libp2p else ""),
        rtt_ms=None if rtt_s is None else round(rtt_s * 1000, 3),
        model=served.model if served else "",
        start=served.start if served else 0,
        end=served.end if served else 0,
        format=served.format if served else "",
        sessions=served.sessions if served else 0,
        tokens_free=served.tokens_free if served else 0,
        tokens_per_s=round(1000 / served.step_ms, 1) if served and served.step_ms else None,
        expires_in_s=round(max(0.0, a.expires - now), 1),
    )


def _models(alive: Sequence[Announcement]) -> list[ModelView]:
    views: list[ModelView] = []
    for digest, served in by_model(alive).items():
        shape = served[-1].shape
        format, spans = in_one_format(served)
        missing = [str(span) for span in gaps(spans, shape.n_blocks)]
        counts = coverage(spans, shape.n_blocks)
        views.append(ModelView(shape.name, digest, format, shape.n_blocks, not missing, missing, counts))
    return views


def draw(peers_per_block: Sequence[int]) -> str:
    """One character a block, or a few blocks: how many peers serve it, ``.`` for none, ``+`` for ten."""
    each = -(-len(peers_per_block) // DRAWN_BLOCKS) or 1
    least = [min(peers_per_block[i : i + each]) for i in range(0, len(peers_per_block), each)]
    return "".join("." if count == 0 else "+" if count > 9 else str(count) for count in least)


def status_page(view: Overview) -> Group:
    """Models with their coverage, then who serves them."""
    from rich.console import Group
    from rich.text import Text

    count = len(view.peers)
    lines = [Text(f"swarm {view.swarm}: {count} {'peer serves' if count == 1 else 'peers serve'}")]
    for model in view.models:
        strip = Text(draw(model.peers_per_block), style="green")
        strip.highlight_regex(r"\.+", "bold red")
        found = (
            ("complete", "green") if model.complete else (f"missing {', '.join(model.missing)}", "bold red")
        )
        name = printable(model.name)
        lines.append(
            Text.assemble(f"{name}  {model.n_blocks} blocks in {model.format}  ", strip, "  ", found)
        )
    if not view.models:
        lines.append(Text("no node serves a model; start one with: shoal up"))
    return Group(*lines, Text(""), peers_table(view.peers))


def peers_table(peers: Sequence[PeerView], *, ids: bool = False) -> Table:
    """One line a peer, with its whole id if that is wanted."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for heading in ("peer", "model", "blocks", "format", "path"):
        rows.add_column(heading, overflow="fold")
    for heading in ("rtt", "tok/s", "sessions", "free tokens"):
        rows.add_column(heading, justify="right")
    if ids:
        rows.add_column("id", overflow="fold")
    for peer in peers:
        cells = (
            peer.name,
            peer.model or "-",
            f"{peer.start}:{peer.end}" if peer.end else "-",
            peer.format or "-",
            peer.path or "-",
            "-" if peer.rtt_ms is None else f"{peer.rtt_ms:.1f} ms",
            "-" if peer.tokens_per_s is None else f"{peer.tokens_per_s:.1f}",
            str(peer.sessions),
            str(peer.tokens_free),
            *([peer.peer] if ids else []),
        )
        rows.add_row(*(Text(printable(cell)) for cell in cells))
    return rows
