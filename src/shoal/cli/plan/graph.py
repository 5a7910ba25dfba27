"""`shoal plan` of a graph: which segments to place where, and what that reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.cli.output import many, printable
from shoal.cli.plan.figures import in_bytes, in_time
from shoal.config import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.models.graph.graph_store import LocalGraph
    from shoal.planning.graph_layout import GraphPlan
    from shoal.planning.roofline import Machine


@dataclass(frozen=True, slots=True)
class GraphPlanResult:
    """A graph, the machines, and where it goes."""

    graph: LocalGraph
    machines: Sequence[Machine]
    requests: int
    plan: GraphPlan


def find_graph(settings: Settings, name: str) -> LocalGraph | None:
    """The graph of a file, or one that was imported here by that name or digest; ``None`` for models.

    Raises:
        As :meth:`shoal.models.graph.graph_store.GraphStore.resolve`.
    """
    from shoal.models.graph.graph_store import GraphStore, names_graph

    store = GraphStore(settings.paths.graphs)
    return store.resolve(name, settings.threads or 1) if names_graph(name) else store.find(name)


def placed_graph(graph: LocalGraph, machines: Sequence[Machine], requests: int) -> GraphPlanResult:
    """Where a graph's segments go. Raises OutOfResources: they do not fit."""
    from shoal.planning.graph_layout import graph_cost, plan_graph

    plan = plan_graph(machines, graph_cost(graph.manifest), requests)
    return GraphPlanResult(graph, machines, requests, plan)


def graph_plan_fields(found: GraphPlanResult) -> dict[str, Any]:
    """The answer as ``--json`` shows it: bytes, seconds, requests a second."""
    plan, cost = found.plan, found.plan.layout.cost
    return {
        "model": found.graph.name,
        "kind": "graph",
        "digest": found.graph.digest,
        "segments": len(cost.operations),
        "bytes": sum(cost.weight_bytes),
        "input_bytes": round(cost.input_bytes),
        "requests": found.requests,
        "machines": list(found.machines),
        "stages": _stages(found),
        "request_s": plan.request_s,
        "requests_s": plan.rate,
        "warning": plan.warning,
    }


def _stages(found: GraphPlanResult) -> list[dict[str, Any]]:
    layout = found.plan.layout
    fields: list[dict[str, Any]] = []
    for stage in found.plan.stages:
        begin, end, away = stage.span.start, stage.span.end, stage.machine != 0
        fields.append(
            {
                "machine": found.machines[stage.machine].name,
                "span": str(stage.span),
                "bytes": sum(layout.cost.weight_bytes[begin:end]),
                "taken_bytes": round(float(layout.cost.taken[begin, end])) if away else 0,
                "given_bytes": round(float(layout.cost.given[begin, end])) if away else 0,
                "computing_s": float(layout.computing(stage.machine)[begin, end]),
                "ways_s": float(layout.ways(stage.machine)[begin, end]),
            }
        )
    return fields


def graph_plan_shown(found: GraphPlanResult) -> RenderableType:
    """The answer for a reader."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    fields = graph_plan_fields(found)
    rows = Table(box=None, pad_edge=False)
    rows.add_column("machine", overflow="fold")
    for heading in ("segments", "weights", "takes", "gives", "computes", "ways"):
        rows.add_column(heading, justify="right")
    for stage in fields["stages"]:
        rows.add_row(
            Text(printable(stage["machine"])),
            stage["span"],
            *(in_bytes(stage[key]) for key in ("bytes", "taken_bytes", "given_bytes")),
            in_time(stage["computing_s"]),
            in_time(stage["ways_s"]),
        )
    idle = len(found.machines) - len(found.plan.stages)
    rate = f"{found.plan.rate:8,.1f} a second"
    lines = [
        f"1 request   {in_time(found.plan.request_s):>12}",
        f"{many(found.requests, 'request'):11} {rate}, of several clients at a time",
        *([f"left over   {idle:8,} of {len(found.machines)} machines, which would not help"] if idle else []),
        *([f"warning: {printable(found.plan.warning)}"] if found.plan.warning else []),
        "",
        "This is the most that memory, arithmetic and links allow; nobody reaches all of it. Of sizes that a "
        "request chooses, 1 is counted.",
    ]
    head = (
        f"{printable(found.graph.name)}: {many(fields['segments'], 'segment')}, "
        f"{in_bytes(fields['bytes'])}, "
        f"{fields['input_bytes']:,} bytes go in"
    )
    return Group(Text(f"{head}\n"), rows, Text("\n" + "\n".join(lines)))
