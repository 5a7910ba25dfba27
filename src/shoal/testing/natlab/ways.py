"""By which way each host of a lab reaches each other, and how long that takes: a pipe from each to each."""

from __future__ import annotations

import itertools
import secrets
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.errors import ChannelClosed, NotAllowed, UsageError
from shoal.net.network import Pipe
from shoal.progress import Progress
from shoal.testing.natlab.lab import NatLab
from shoal.testing.natlab.lab_peer import LabPeer
from shoal.testing.natlab.sites import Site
from shoal.types import PeerAddress

if TYPE_CHECKING:
    from rich.console import RenderableType

WITHIN_S = 10.0
SETTLED_WITHIN_S = 15.0
"""How long is waited until every peer knows how it is seen."""
RATE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class PairWay:
    """One host's first pipe to another one."""

    source: str
    destination: str
    networks: tuple[str, str]
    """The kinds of both."""
    way: str
    """``none`` where there was none."""
    seconds: float
    """From the wish to the pipe."""
    mb_s: float | None = None
    """Megabytes a second over it; measured over relays, once for two kinds of networks."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class WaysReport:
    """What came of it."""

    joined_s: Mapping[str, float]
    """By host behind a router: until everybody could call it."""
    pairs: Sequence[PairWay]

    @property
    def complete(self) -> bool:
        """Whether everybody reached everybody."""
        return all(pair.way != "none" for pair in self.pairs)

    def fields(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {"complete": self.complete, "joined_s": self.joined_s, "pairs": self.pairs}


def measure_ways(sites: Sequence[Site], seed: int, progress: Progress) -> WaysReport:
    """Make a lab, and have each of its hosts open a pipe to each other one, one after the other.

    Raises:
        UsageError: nobody is public, so nobody can meet.
        DeadlineExceeded: a peer did not come up, or could not join.
    """
    secret, kinds = secrets.token_bytes(32), {name: site.kind for site in sites for name in site.hosts}
    if "public" not in kinds.values():
        raise UsageError("nobody could meet without a public peer", check="leave out --public 0")
    with NatLab(sites, seed=seed) as lab, ExitStack() as running:
        progress("starting peers", 0, 0)
        peers = {name: running.enter_context(LabPeer(host, secret)) for name, host in lab.hosts.items()}
        public = [peer for peer in peers.values() if peer.host.is_public and len(peer.host.addresses) > 1]
        joined = {name: peer.join(public) for name, peer in peers.items() if peer not in public}
        _settle(peers, kinds)
        found: list[PairWay] = []
        ordered = list(itertools.permutations(peers, 2))
        for number, (source, destination) in enumerate(ordered):
            progress("opening pipes", number, len(ordered))
            both = kinds[source], kinds[destination]
            measured = any(pair.mb_s and pair.networks == both for pair in found)
            found.append(_open(peers[source], peers[destination], both, measured=measured))
    return WaysReport(
        {name: round(s, 2) for name, s in joined.items() if not lab.host(name).is_public}, found
    )


def _settle(peers: Mapping[str, LabPeer], kinds: Mapping[str, str]) -> None:
    """Wait until peers behind routers know theirs, as after some seconds in a swarm."""
    until = time.monotonic() + SETTLED_WITHIN_S
    waiting = [name for name in peers if kinds[name] not in ("public", "v6")]
    while waiting and time.monotonic() < until:
        seen = {name: peers[name].network.reach() for name in waiting}
        waiting = [
            n for n in waiting if seen[n].nat == "unknown" or (kinds[n] == "upnp" and not seen[n].mapped)
        ]
        time.sleep(0.1)


def _open(source: LabPeer, other: LabPeer, networks: tuple[str, str], *, measured: bool) -> PairWay:
    names = source.host.name, other.host.name

    async def dial(address: PeerAddress) -> tuple[Pipe, float]:
        began = time.monotonic()
        return await source.network.open_pipe(address, deadline_s=WITHIN_S), time.monotonic() - began

    try:
        pipe, seconds = source.call(dial, other.network.address)
        try:
            mb_s = None
            if pipe.way == "relayed" and not measured:
                mb_s = round(source.rate(pipe, RATE_BYTES) / 1e6, 1)
            return PairWay(*names, networks, pipe.way, round(seconds, 3), mb_s)
        finally:
            source.call(pipe.aclose)
    except (ChannelClosed, NotAllowed) as error:
        return PairWay(*names, networks, "none", WITHIN_S, error=error.message)


def ways_table(report: WaysReport) -> RenderableType:
    """A line for each kind of network and a column for each kind that it reaches, with the median time."""
    from rich.console import Group  # noqa: PLC0415 - only a person needs it
    from rich.table import Table  # noqa: PLC0415

    cells: dict[tuple[str, str], list[PairWay]] = defaultdict(list)
    for pair in report.pairs:
        cells[pair.networks].append(pair)
    kinds = list(dict.fromkeys(pair.networks[0] for pair in report.pairs))
    table = Table("from \\ to", *kinds, box=None, pad_edge=False)
    for kind in kinds:
        table.add_row(kind, *(_cell(cells.get((kind, other), [])) for other in kinds))
    joins = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.joined_s.items())
    errors = [
        f"{pair.source} does not reach {pair.destination}: {pair.error}"
        for pair in report.pairs
        if pair.error
    ]
    return Group(table, *([f"joined by relay: {joins}"] if joins else []), *errors)


def _cell(pairs: Sequence[PairWay]) -> str:
    """``3 punched, 0.45 s``: how many went which way, the median until the pipe was there."""
    lines: list[str] = []
    for way, count in Counter(pair.way for pair in pairs).most_common():
        seconds = statistics.median(pair.seconds for pair in pairs if pair.way == way)
        rate = next((pair.mb_s for pair in pairs if pair.way == way and pair.mb_s), None)
        lines.append(f"{count} {way}, {seconds:.2f} s" + (f", {rate:.0f} MB/s" if rate else ""))
    return "\n".join(lines) or "–"
