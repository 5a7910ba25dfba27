"""What `shoal status` and `shoal peers` show, made from announcements. Pure: the caller brings the facts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shoal.cli.output import printable
from shoal.net.network import PeerConnection
from shoal.swarm.announcement import Announcement, operator_of
from shoal.swarm.coverage import by_model, in_one_format, in_order, most_relevant, runs
from shoal.swarm.names import name_of
from shoal.types import Digest, ModelShape, NatKind, PeerId, Span, Way, gaps
from shoal.wire.messages import AGENT
from shoal.wire.versions import behind, releases

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

DRAWN_BLOCKS = 64
"""Blocks of a model are drawn one a character up to here; beyond, several share one."""
PEERS_SHOWN = 256
MODELS_SHOWN = 16
RUNS_SHOWN = 256
"""Of a model: neighbouring blocks with as many peers."""
GAPS_SHOWN = 32
RELEASES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class PeerReach:
    """How a peer was reached from here."""

    way: Way
    rtt_s: float | None
    """A round trip over that way; ``None`` where there is none, or no answer."""


@dataclass(frozen=True, slots=True)
class PeerView:
    """One peer of the swarm as this machine sees it."""

    peer: str
    name: str
    """What it is called where people read."""
    way: Way | Literal[""]
    """Which way leads to it from here, ``none`` where it cannot be reached; empty when that was not tried."""
    address: str
    rtt_ms: float | None
    model: str
    start: int
    end: int
    format: str
    numerics: str
    """By what it computes; empty where it does not say."""
    release: str
    """Of Shoal, as it says."""
    device: str
    """What it computes on, as it says; empty when it does not."""
    device_memory: int
    """Bytes of memory that this has."""
    share: float
    """Share of the time in which it computes; 0 while it has paused."""
    token_joules: float | None
    """Energy that a token takes there, as it says; ``None`` where it does not."""
    sessions: int
    tokens_free: int
    tokens_per_s: float | None
    """Decode steps of one session through its span alone, as it measured them."""
    expires_in_s: float
    attests: str = ""
    """The hardware that it says to show; empty where it shows none."""
    attested: str = ""
    """What it has shown, or why that is not believed; empty where it was not asked."""
    measurements: dict[str, str] = field(default_factory=dict[str, str])
    """What its hardware has signed of its software, by the maker's names; empty where that does not hold."""
    operator: str = ""
    """Whose machine it is, as that operator has signed; empty where it does not say."""
    encrypted: bool = False
    """Whether it computes its graph on encrypted inputs, as it says."""


@dataclass(frozen=True, slots=True)
class ShownMachine:
    """What a peer has shown to run on."""

    told: str
    """That, or why it is not believed, in few words."""
    measurements: Mapping[str, str]
    on_list: bool = False
    """Whether all of it holds, and the list has it."""


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
    """The first gaps, as ``start:end``: what nobody serves whom this machine reaches."""
    out_of_reach: list[str]
    """Those of them, or parts, that somebody serves whom this machine cannot reach."""
    runs: list[tuple[int, int, int]]
    """Blocks ``[start, end)`` and how many peers serve each of them, in order; the first of very many."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole swarm, as far as this machine knows it."""

    swarm: str
    peer: str
    """Ourselves."""
    peers: list[PeerView] = field(default_factory=list[PeerView])
    models: list[ModelView] = field(default_factory=list[ModelView])
    peers_in_all: int = 0
    """Anybody can announce anything, so no more than some are shown: those that matter most here."""
    models_in_all: int = 0
    clocks: str = ""
    """That clocks differ, in a sentence; empty where none do."""
    nat: NatKind = "unknown"
    """What kind of router this machine is behind."""
    releases: dict[str, int] = field(default_factory=dict[str, int])
    """How many peers run each release of Shoal, the newest first."""
    behind: str = ""
    """That most run a newer one than this machine, in a sentence; empty where they do not."""
    estimated: int = 0
    """Peers of a large swarm, of which this machine knows a part; 0 where it knows all."""


def overview(
    swarm: str,
    ourselves: PeerId,
    announcements: Iterable[Announcement],
    connections: Sequence[PeerConnection],
    reached: Mapping[PeerId, PeerReach],
    now: float,
    *,
    known: Callable[[Digest], ModelShape | None] = lambda _: None,
    clocks: str = "",
    nat: NatKind = "unknown",
    machines: Mapping[PeerId, ShownMachine] | None = None,
    estimated: int = 0,
) -> Overview:
    """Put what is known of the swarm together, peers in the order of their blocks.

    Args:
        announcements: of more than are shown, the first count.
        reached: those that were tried. A peer that was not counts as one that can be reached.
        known: gives the shape of a model that is on this machine.
        clocks: what there is to say of clocks that differ.
        machines: what peers have shown, of those that were asked.
        estimated: as :attr:`Overview.estimated`.
    """
    alive = list(announcements)
    held = {connection.peer: connection for connection in connections}
    shown = in_order(alive[:PEERS_SHOWN])
    asked = machines or {}
    peers = [
        _peer(a, held.get(PeerId(a.peer)), reached.get(PeerId(a.peer)), asked.get(PeerId(a.peer)), now)
        for a in shown
    ]
    in_all = len({a.served.digest for a in alive if a.served})
    lost = {peer for peer, found in reached.items() if found.way == "none"}
    agents = [a.agent for a in alive]
    return Overview(
        swarm,
        ourselves,
        peers,
        _models(alive, known, lost),
        len(alive),
        in_all,
        clocks,
        nat,
        dict(itertools.islice(releases(map(printable, agents)).items(), RELEASES_SHOWN)),
        behind(AGENT, agents),
        estimated,
    )


def _peer(
    a: Announcement,
    held: PeerConnection | None,
    found: PeerReach | None,
    machine: ShownMachine | None,
    now: float,
) -> PeerView:
    served = a.served
    rtt_s = found.rtt_s if found else None
    return PeerView(
        peer=a.peer,
        name=name_of(a.peer),
        way=found.way if found else "",
        address=held.address if held else (a.libp2p[0] if a.libp2p else ""),
        rtt_ms=None if rtt_s is None else round(rtt_s * 1000, 3),
        model=served.model if served else "",
        start=served.start if served else 0,
        end=served.end if served else 0,
        format=served.format if served else "",
        numerics=served.numerics if served else "",
        release=a.agent,
        device=served.device if served else "",
        device_memory=served.device_memory if served else 0,
        share=served.share if served else 1.0,
        token_joules=(served.token_joules or None) if served else None,
        sessions=served.sessions if served else 0,
        tokens_free=served.tokens_free if served else 0,
        tokens_per_s=round(1000 / served.step_ms, 1) if served and served.step_ms else None,
        expires_in_s=round(min(max(0.0, a.expires - now), a.expires - a.issued), 1),
        attests=served.attests if served else "",
        attested=machine.told if machine else "",
        measurements=dict(machine.measurements) if machine else {},
        operator=statement.operator if (statement := operator_of(a)) else "",
        encrypted=served.encrypted if served else False,
    )


def _models(
    alive: Sequence[Announcement],
    known: Callable[[Digest], ModelShape | None],
    lost: Set[PeerId],
) -> list[ModelView]:
    in_reach = by_model(a for a in alive if a.peer not in lost)
    views: list[ModelView] = []
    for shape, everybody in most_relevant(alive, known, MODELS_SHOWN):
        served = [one for one in in_reach.get(shape.digest, []) if one.n_blocks == shape.n_blocks]
        format, spans = in_one_format(served or everybody)
        spans = spans if served else []
        missing = gaps(spans, shape.n_blocks)
        announced = gaps((one.span for one in everybody if one.format == format), shape.n_blocks)
        lacking = [str(span) for gap in missing for span in _without(gap, announced)]
        strip = [(span.start, span.end, count) for span, count in runs(spans, shape.n_blocks)[:RUNS_SHOWN]]
        views.append(
            ModelView(
                shape.name,
                shape.digest,
                format,
                shape.n_blocks,
                not missing,
                [str(span) for span in missing[:GAPS_SHOWN]],
                lacking[:GAPS_SHOWN],
                strip,
            )
        )
    return views


def _without(gap: Span, others: Sequence[Span]) -> list[Span]:
    """The parts of a gap that are in none of ``others``, which are in order."""
    left: list[Span] = []
    start = gap.start
    for other in others:
        if other.end > start and other.start < gap.end:
            if other.start > start:
                left.append(Span(start, other.start))
            start = other.end
    return [*left, Span(start, gap.end)] if start < gap.end else left


def draw(strip: Sequence[tuple[int, int, int]]) -> str:
    """One character a block, or a few blocks: how many peers serve it, ``.`` for none, ``+`` for ten."""
    blocks = strip[-1][1] if strip else 0
    each = -(-blocks // DRAWN_BLOCKS) or 1
    least = [
        min(count for start, end, count in strip if start < i + each and end > i)
        for i in range(0, blocks, each)
    ]
    return "".join("." if count == 0 else "+" if count > 9 else str(count) for count in least)


def status_page(view: Overview) -> Group:
    """Models with their coverage, then who serves them."""
    from rich.console import Group
    from rich.text import Text

    count = view.peers_in_all
    lines = [Text(f"swarm {view.swarm}: {count} {'peer serves' if count == 1 else 'peers serve'}")]
    for model in view.models:
        strip = Text(draw(model.runs), style="green")
        strip.highlight_regex(r"\.+", "bold red")
        found = (
            ("complete", "green") if model.complete else (f"missing {', '.join(model.missing)}", "bold red")
        )
        if view.estimated and not model.complete:
            found = ("a few of its peers are known", "dim")
        elif model.out_of_reach:
            found = (f"{found[0]} (out of reach from here: {', '.join(model.out_of_reach)})", found[1])
        name = printable(model.name)
        lines.append(
            Text.assemble(f"{name}  {model.n_blocks} blocks in {model.format}  ", strip, "  ", found)
        )
    if view.models_in_all > len(view.models):
        lines.append(Text(f"{view.models_in_all - len(view.models)} more models are not shown"))
    if len(view.releases) > 1:
        lines.append(Text("releases: " + ", ".join(f"{agent} × {n}" for agent, n in view.releases.items())))
    if view.behind:
        lines.append(Text(f"note: {view.behind}", style="yellow"))
    if view.estimated:
        part = "this machine knows those of its models, and a few of each other"
        lines.append(Text(f"a large swarm, of about {view.estimated} peers: {part}"))
    if view.clocks:
        lines.append(Text(f"note: {view.clocks}", style="yellow"))
    if not view.models:
        lines.append(Text("no node serves a model; start one with: shoal up"))
    hidden = view.peers_in_all - len(view.peers)
    more = [Text(f"{hidden} more peers are not shown")] if hidden > 0 else []
    return Group(*lines, Text(""), peers_table(view.peers), *more)


def peers_table(peers: Sequence[PeerView], *, ids: bool = False) -> Table:
    """One line a peer, with its whole id if that is wanted."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for heading in ("peer", "model", "blocks", "format", "device", "way"):
        rows.add_column(heading, overflow="fold")
    energy = any(peer.token_joules for peer in peers)
    share = any(peer.share < 1 for peer in peers)
    asked = any(peer.attested for peer in peers)
    unlike = len({peer.release for peer in peers}) > 1
    owned = any(peer.operator for peer in peers)
    # Few peers say the first and the second is for some hours: without them, the rest has more room.
    optional = (*(["share"] if share else []), *(["J/token"] if energy else []))
    for heading in ("rtt", "tok/s", *optional, "sessions", "free tokens"):
        rows.add_column(heading, justify="right")
    last = {"release": unlike, "operator": owned, "attested": asked, "id": ids}
    for heading in (heading for heading, told in last.items() if told):
        rows.add_column(heading, overflow="fold")
    for peer in peers:
        cells = (
            peer.name,
            peer.model or "-",
            f"{peer.start}:{peer.end}" if peer.end else "-",
            peer.format or "-",
            f"{peer.device} {peer.device_memory / 2**30:.0f} GiB" if peer.device else "-",
            peer.way or "-",
            "-" if peer.rtt_ms is None else f"{peer.rtt_ms:.1f} ms",
            "-" if peer.tokens_per_s is None else f"{peer.tokens_per_s:.1f}",
            *([f"{peer.share:.0%}" if peer.share else "paused"] if share else []),
            *([f"{peer.token_joules:.3g}" if peer.token_joules else "-"] if energy else []),
            str(peer.sessions),
            str(peer.tokens_free),
            *([peer.release or "-"] if unlike else []),
            *([name_of(peer.operator) if peer.operator else "-"] if owned else []),
            *([peer.attested or "shows nothing"] if asked else []),
            *([peer.peer] if ids else []),
        )
        rows.add_row(*(Text(printable(cell)) for cell in cells))
    return rows
