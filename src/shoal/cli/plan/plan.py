"""`shoal plan`: what given machines would reach with a model, and which blocks to put where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import options
from shoal.cli.output import emit, printable
from shoal.cli.plan.figures import in_bytes, in_time
from shoal.cli.progress import working
from shoal.progress import Progress

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from shoal.config import Settings
    from shoal.planning.fleet.machines import Described
    from shoal.planning.model_input import PlanInput
    from shoal.planning.plan import DecodeSpeed, Plan
    from shoal.planning.protection import ProtectionCost
    from shoal.planning.roofline import Machine
    from shoal.types import Span


def register(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    model: options.ModelArgument,
    machine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,…",
            help="A machine: name, count, memory, bandwidth, ops, link, rtt. The first one runs the client.",
            show_default=False,
        ),
    ] = None,
    machines: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TOML file with a [[machine]] table for each machine.", show_default=False
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(help="Multiply the number of every machine by this.", min=1, max=1000)
    ] = 1,
    sessions: Annotated[
        int, typer.Option(help="Concurrent sessions; 1: for the shortest way.", min=1, max=100_000)
    ] = 8,
    context: Annotated[
        int | None, typer.Option(help="Tokens per session; 2048 if not given.", min=1, show_default=False)
    ] = None,
    format: options.FormatOption = None,
    kv: options.KVOption = None,
    private_ends: options.PrivateEndsOption = None,
    draft: options.DraftOption = None,
    protect: options.ProtectOption = None,
    audit_budget: options.AuditBudgetOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Estimate how fast given machines would run a model, what limits them, and which blocks to place where.

    Values missing from a machine are measured on this one. No weights are needed: a model's config is enough.
    Of a graph the blocks are its segments, and sessions the requests that are under way at a time.
    """
    from shoal.cli.plan.graph import find_graph, graph_plan_fields, graph_plan_shown, placed_graph
    from shoal.planning.fleet.machines import Described, parse_machine, read_machines
    from shoal.planning.model_input import plan_input

    settings = options.settings(
        format=format,
        kv=kv,
        device=device,
        threads=threads,
        private_ends=private_ends,
        draft=draft,
        protect=protect,
        audit_budget=audit_budget,
    )
    described = [parse_machine(text) for text in machine or ()]
    described += read_machines(machines) if machines else []
    if (graph := find_graph(settings, model)) is not None:
        unfit = {"context": context, "format": format, "kv": kv, "private_ends": private_ends, "draft": draft}
        unfit |= {"protect": protect, "audit_budget": audit_budget}
        _refuse_of_graphs(graph.name, unfit | {"device": None if device == "cpu" else device})
        settings = replace(settings, device="cpu")  # which computes graphs
        with working(f"placing the segments of {graph.name}") as report:
            known = _machines(settings, described or [Described()], count, report)
            found_graph = placed_graph(graph, known, sessions)
        emit(graph_plan_fields(found_graph), as_json, lambda: graph_plan_shown(found_graph))
        return
    with working(f"reading the config of {model}") as report:
        drawn = plan_input(settings, model, sessions, context)
        drafting = _draft_bytes(settings)
        known = _machines(settings, described or [Described()], count, report)
        known = [replace(known[0], memory=_left(known[0].memory, drafting, settings.draft)), *known[1:]]
        report("placing the blocks", 0, 0)
        found = replace(_found(drawn, known), draft_bytes=drafting)
        found = replace(found, protection=_protection(settings, found))
    emit(_fields(found), as_json, lambda: _shown(found))


def _refuse_of_graphs(name: str, given: Mapping[str, object]) -> None:
    """Raises UsageError: options were given that say nothing about a graph."""
    from shoal.errors import UsageError

    if unfit := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
        raise UsageError(
            f"{', '.join(unfit)} says nothing about the plan of a graph, and {name} is one",
            check="leave it out: a graph is placed whole, as it was imported, over CPUs",
        )


@dataclass(frozen=True, slots=True)
class PlanResult:
    """The question and its answer."""

    drawn: PlanInput
    machines: Sequence[Machine]
    plan: Plan
    draft_bytes: int = 0
    """What a draft model takes of the first machine, beside what is placed there."""
    protection: ProtectionCost | None = None
    """What the level of protection costs."""


def _protection(settings: Settings, found: PlanResult) -> ProtectionCost:
    from shoal.planning.protection import protection_cost

    load = found.drawn.load
    return protection_cost(
        settings.protection,
        found.drawn.format,
        budget=settings.audit_budget,
        hops=len(found.plan.stages),
        tokens=load.context,
        row_bytes=load.row_bytes,
        proof_bytes=found.drawn.proof_bytes,
    )


def _draft_bytes(settings: Settings) -> int:
    """Of the weights of the draft model that the client may load; 0 without one."""
    if not settings.draft:
        return 0
    from shoal.client.speculation.draft_model import draft_bytes, draft_format
    from shoal.models.store.store import ModelStore

    local = ModelStore(settings.paths.models).resolve(settings.draft)
    return draft_bytes(local, draft_format(local, settings.device))


def _left(memory: int, taken: int, name: str) -> int:
    """What a draft model leaves of the first machine's memory.

    Raises:
        OutOfResources: nothing.
    """
    from shoal.errors import OutOfResources

    if taken >= memory:
        raise OutOfResources(
            f"the draft model {name} takes {in_bytes(taken)}, and the first machine has {in_bytes(memory)}",
            check="choose a smaller draft model, or give the first machine more memory",
        )
    return memory - taken


def _machines(
    settings: Settings, described: Sequence[Described], count: int, report: Progress
) -> list[Machine]:
    from functools import partial

    from shoal.planning.fleet.machines import completed
    from shoal.planning.measure import measure_here

    return completed(described, count, partial(measure_here, settings, report))


def _found(drawn: PlanInput, machines: Sequence[Machine]) -> PlanResult:
    from functools import partial

    from shoal.client.ring.prefill import piece_tokens
    from shoal.planning.plan import make_plan

    piece = partial(piece_tokens, drawn.format)
    return PlanResult(drawn, machines, make_plan(machines, drawn.cost, drawn.load, piece))


def _fields(found: PlanResult) -> dict[str, Any]:
    """The answer as ``--json`` shows it: bytes, seconds, tokens, operations in a second."""
    drawn, plan = found.drawn, found.plan
    return {
        "model": drawn.name,
        "format": drawn.format,
        "blocks": len(drawn.cost.blocks) + len(drawn.cost.own),
        "bytes": round(drawn.cost.bytes + _own(found)["bytes"]),
        "sessions": drawn.load.sessions,
        "context": drawn.load.context,
        "machines": list(found.machines),
        "own": _own(found),
        "draft_bytes": found.draft_bytes,
        "stages": _stages(found),
        "one_session": _speed(found, plan.one),
        "all_sessions": _speed(found, plan.many),
        "prefill": {
            "tokens": plan.prefill.tokens,
            "tok_s": plan.prefill.rate,
            "first_token_s": plan.prefill.first_token_s,
            "bound": plan.prefill.bound,
        },
        "kv_tokens": _whole(plan.capacity),
        "protection": found.protection,
    }


def _own(found: PlanResult) -> dict[str, Any]:
    """What the client's own blocks take of its machine: for one session, and each of its tokens."""
    from shoal.planning.roofline import SpanCost, step_time

    drawn = found.drawn
    part = SpanCost(drawn.cost.own, drawn.cost.hidden_size)
    step_s = step_time(found.machines[0], part, 1, drawn.load.context).seconds if part.blocks else 0.0
    return {
        "spans": list(map(str, drawn.own.spans(len(drawn.cost.blocks) + len(drawn.cost.own)))),
        "bytes": round(part.bytes),
        "kv_bytes_per_token": round(part.kv_bytes),
        "step_s": step_s,
    }


def _span(found: PlanResult, span: Span) -> str:
    """Blocks as the model numbers them."""
    first = found.drawn.own.first
    return f"{span.start + first}:{span.end + first}"


def _stages(found: PlanResult) -> list[dict[str, Any]]:
    from shoal.planning.roofline import step_time

    fields: list[dict[str, Any]] = []
    for stage, tokens in zip(found.plan.stages, found.plan.kv_tokens, strict=True):
        machine, part = found.machines[stage.machine], found.drawn.cost.part(stage.span)
        step = step_time(machine, part, 1, found.drawn.load.context)
        fields.append(
            {
                "machine": machine.name,
                "span": _span(found, stage.span),
                "bytes": round(part.bytes),
                "kv_tokens": _whole(tokens),
                "step_s": step.seconds,
                "bound": step.bound,
            }
        )
    return fields


def _speed(found: PlanResult, speed: DecodeSpeed) -> dict[str, Any]:
    return {
        "sessions": speed.sessions,
        "groups": speed.groups,
        "tok_s": speed.rate,
        "bound": speed.bound,
        "busiest": None if speed.busiest is None else found.machines[speed.busiest].name,
    }


def _whole(tokens: float) -> int | None:
    """Tokens; ``None`` where states do not grow with them."""
    return None if math.isinf(tokens) else int(tokens)


def _shown(found: PlanResult) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    drawn, plan, own = found.drawn, found.plan, _own(found)
    head = (
        f"{printable(drawn.name)} in {drawn.format}: {len(drawn.cost.blocks) + len(drawn.cost.own)} blocks, "
        f"{in_bytes(drawn.cost.bytes + own['bytes'])}; for {drawn.load.sessions} sessions of "
        f"{drawn.load.context} tokens"
    )
    room = "any number of" if math.isinf(plan.capacity) else f"{int(plan.capacity):,}"
    lines = [
        f"1 session       {plan.one.rate:10,.1f} tok/s   {_why(found, plan.one)}",
        f"{f'{plan.many.sessions} sessions':15} {plan.many.rate:10,.1f} tok/s   {_why(found, plan.many)}",
        f"{f'prompt of {plan.prefill.tokens}':15} {plan.prefill.rate:10,.1f} tok/s   bound by "
        f"{plan.prefill.bound}, first token after {in_time(plan.prefill.first_token_s)}",
        f"room for        {room:>10} tokens of KV, over all sessions",
    ]
    if found.draft_bytes:
        lines.append(
            f"the draft model takes {in_bytes(found.draft_bytes)} of the first machine while it is used"
        )
    if own["spans"]:
        lines.append(
            f"the client runs blocks {' and '.join(own['spans'])} itself: {in_time(own['step_s'])} a step, "
            f"{in_bytes(own['bytes'])} of weights, {own['kv_bytes_per_token'] / 1e3:.1f} kB of KV a token"
        )
    lines += _protection_lines(found.protection)
    idle = len(found.machines) - len(plan.stages)
    if idle:
        lines.append(f"left over        {idle:9,} of {len(found.machines)} machines, which would not help")
    lines += ["", "This is the most that memory, arithmetic and links allow; nobody reaches all of it."]
    return Group(Text(f"{head}\n"), _machine_table(found), Text("\n" + "\n".join(lines)))


def _protection_lines(cost: ProtectionCost | None) -> list[str]:
    """What the level of protection costs, where it is not the one that costs nothing."""
    if cost is None or cost.level == "fast":
        return []
    if cost.level == "attested":
        return ["attested: only nodes that show their hardware take part; nothing is computed again"]
    lines = [f"{cost.level}: hops sign each answer, {cost.receipt_bytes:.0f} B a token of it"]
    if cost.why_none:
        undone = "compared" if cost.level == "consensus" else cost.level
        return [*lines, f"nothing can be {undone}: {cost.why_none}"]
    if cost.proof_bytes:
        lines.append(
            f"of each answer one block is proved, in one window: {in_bytes(cost.proof_bytes)} from its hop, "
            "and a fraction of a second to prove it there and to check it here"
        )
    if cost.replicas > 1:
        lines.append(
            f"{cost.replicas} replicas compute each answer: {cost.replicas - 1} times the compute more, a "
            "prefill each when it is complete, on as many other machines, which are sent "
            f"{in_bytes(cost.sent_bytes)} of rows"
        )
    if cost.answers_per_audit:
        lines.append(
            f"audits take up to {cost.budget:.1%} of the compute: about every {cost.answers_per_audit:.1f} "
            f"answers one hop is computed again, from {in_bytes(cost.shown_bytes)} of rows"
        )
    return lines


def _why(found: PlanResult, speed: DecodeSpeed) -> str:
    if speed.busiest is None:
        return f"bound by {speed.bound}"
    name = printable(found.machines[speed.busiest].name)
    return f"bound by {speed.bound}: {name} is always busy, {speed.groups} groups of sessions go round"


def _machine_table(found: PlanResult) -> Table:
    """One line for each machine that serves, in the route's order."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    rows.add_column("machine", overflow="fold")
    for heading in ("blocks", "weights", "KV tokens", "step", "memory", "reads", "computes", "link", "rtt"):
        rows.add_column(heading, justify="right")
    for stage, fields in zip(found.plan.stages, _stages(found), strict=True):
        machine, tokens = found.machines[stage.machine], fields["kv_tokens"]
        figures = [
            fields["span"],
            in_bytes(fields["bytes"]),
            "any" if tokens is None else f"{tokens:,}",
            in_time(fields["step_s"]),
            in_bytes(machine.memory),
            f"{machine.bandwidth / 1e9:.3g} GB/s",
            f"{machine.ceiling(found.drawn.format) / 1e9:.4g} G/s",
            f"{machine.link * 8 / 1e6:.4g} Mb/s",
            in_time(machine.rtt_s),
        ]
        rows.add_row(Text(printable(machine.name)), *figures)
    return rows
