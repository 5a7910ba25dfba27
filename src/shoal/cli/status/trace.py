"""`shoal status --trace`: where the time of recent steps went, as the nodes of this machine tell."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from shoal.cli.output import printable
from shoal.config import Settings
from shoal.errors import NotRunning
from shoal.metrics.trace import RerouteTrace, StepTrace
from shoal.swarm.local_nodes import running_nodes
from shoal.swarm.names import name_of

if TYPE_CHECKING:
    from rich.console import Group

ANSWERED_WITHIN_S = 3.0
ANSWER_LIMIT = 4 << 20
STEPS_SHOWN = 20


class Traced(Struct, frozen=True):
    """What one node, or a client in its process, has traced."""

    steps: list[StepTrace] = []
    reroutes: list[RerouteTrace] = []


class Traces(Struct, frozen=True):
    """What one process of this machine tells."""

    peer: str
    node: Traced
    """Steps as they passed this one hop."""
    clock: str = ""
    """What it thinks of clocks that differ, in a sentence; empty where none do."""
    client: Traced = Traced()
    """Steps round whole rings, of the client in the same process if there is one."""


def recent(settings: Settings) -> list[Traces]:
    """The traces of this machine's nodes in the swarm.

    Raises:
        NotRunning: no node of it runs here, or none shows its figures.
    """
    found = traces(settings)
    if not found:
        raise NotRunning(
            f"no node of swarm {settings.swarm} on this machine has traces",
            check="check that a node runs here and that its metrics_host is not none",
            next_command="shoal up",
        )
    return found


def traces(settings: Settings) -> list[Traces]:
    """The same, of those that there are."""
    nodes = [
        node for node in running_nodes(settings.paths.nodes) if node.swarm == settings.swarm and node.figures
    ]
    return [found for node in nodes if (found := _fetched(node.figures)) is not None]


def _fetched(url: str) -> Traces | None:
    """What the node there tells; ``None`` when it has ended meanwhile."""
    try:
        with urllib.request.urlopen(f"{url}/trace", timeout=ANSWERED_WITHIN_S) as answer:  # our own loopback
            return msgspec.json.decode(answer.read(ANSWER_LIMIT), type=Traces)
    except (urllib.error.URLError, TimeoutError, OSError, msgspec.DecodeError):
        return None


def trace_page(found: list[Traces]) -> Group:
    """The newest steps of each process, one line a hop."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Text] = []
    for traces in found:
        for name, traced in (("node", traces.node), ("client", traces.client)):
            if traced.steps:
                parts.append(Text(f"{name} {printable(name_of(traces.peer))}"))
                parts += [Text(line) for line in step_lines(traced.steps[-STEPS_SHOWN:])]
            parts += [Text(reroute_line(reroute)) for reroute in traced.reroutes]
    return Group(*(parts or [Text("no steps yet")]))


def step_lines(steps: list[StepTrace]) -> Iterator[str]:
    """Each step on a line, and below it where it was."""
    for step in steps:
        network = "" if step.network_ms is None else f", network {step.network_ms:.2f}"
        what = f"{step.tokens} tokens" if step.tokens > 1 else "1 token"
        head = f"  {step.session} step {step.number} at {step.position}, {what}"
        yield f"{head}: {step.total_ms:.2f} ms{network}"
        way = "" if step.network_ms is None else f"  way {step.way_ms:.2f}"
        for hop in step.hops:
            times = f"compute {hop.compute_ms:.2f}  waiting {hop.waiting_ms:.2f}{way}"
            yield f"    {hop.span:>9}  {printable(name_of(hop.peer))}  {times}"


def reroute_line(reroute: RerouteTrace) -> str:
    """What became of a loss."""
    lost = ", ".join(printable(name_of(peer)) for peer in reroute.lost)
    return f"  {reroute.session} lost {lost}: recovered by {reroute.way} after {reroute.gap_s:.2f} s"
