"""`shoal fleet plan`: what to run at each of many machines, from one file. Nothing is sent to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import options
from shoal.cli.output import emit, many, printable
from shoal.cli.plan.figures import in_bytes
from shoal.cli.progress import working

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from shoal.planning.fleet.dealing import FleetPlace
    from shoal.planning.fleet.planned import PlannedFleet


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Plan what each of many machines should run.", no_args_is_help=True)
    # With one command alone typer would take the group for it.
    group.callback()(lambda: None)
    group.command()(plan)
    app.add_typer(group, name="fleet")


def plan(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="TOML file with the model and a [[machine]] table for each machine."
        ),
    ],
    format: options.FormatOption = None,
    kv: options.KVOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Print what to run on each of a file's machines: spans, formats and memory.

    The first machine has the gateway. No weights are needed, and nothing is sent to any machine."""
    from shoal.planning.fleet.machines import read_fleet
    from shoal.planning.fleet.planned import planned_fleet

    fleet = read_fleet(file)
    settings = options.settings(format=format or fleet.format, kv=kv or fleet.kv)
    with working(f"planning {file.name}") as report:
        found = planned_fleet(fleet, settings, report)
    emit(_fields(found), as_json, lambda: _shown(found))


def _fields(found: PlannedFleet) -> dict[str, Any]:
    """The answer as ``--json`` shows it: bytes, tokens in a second."""
    asked, plan, names = found.asked, found.plan, [machine.name for machine in found.machines]
    return {
        "model": asked.name,
        "format": asked.format,
        "blocks": len(asked.cost.blocks),
        "sessions": asked.load.sessions,
        "context": asked.load.context,
        "tok_s": plan.rate,
        "gateway": names[0],
        "gateway_heads": plan.gateway_heads,
        "gateway_busy": plan.gateway_busy,
        "ends_bytes": round(asked.cost.client.bytes),
        "least_peers": min(plan.peers),
        "routes": [
            {
                "machines": [names[one] for one in route.machines],
                "spans": [str(stage.span) for stage in route.plan.stages],
                "sessions": route.plan.many.sessions,
                "tok_s": route.plan.many.rate,
                "one_session_tok_s": route.plan.one.rate,
                "bound": route.plan.many.bound,
            }
            for route in plan.routes
        ],
        "machines": [_place_fields(found, place) for place in plan.places],
        "left_out": [{"machine": names[one.machine], "lacking": round(one.lacking)} for one in plan.left_out],
        "stand_ins": found.stand_ins,
        "steps": list(found.steps),
        "check": found.check,
    }


def _place_fields(found: PlannedFleet, place: FleetPlace) -> dict[str, Any]:
    return {
        "machine": found.machines[place.machine].name,
        "address": found.described[place.machine].address,
        "route": None if place.route is None else place.route + 1,
        "span": str(place.span),
        "sessions": place.sessions,
        "weights": round(place.weights),
        "kv": round(place.kv),
        "room": place.room,
        "left": round(place.room - place.weights - place.kv),
    }


def _shown(found: PlannedFleet) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    asked, plan = found.asked, found.plan
    head = (
        f"{printable(asked.name)} in {asked.format} on {many(len(plan.places), 'machine')}: "
        f"{many(len(plan.routes), 'route')}, {plan.rate:,.0f} tok/s in all for {asked.load.sessions} "
        f"sessions of {asked.load.context} tokens; each block is served by at least {min(plan.peers)}\n"
    )
    notes, steps = "\n".join(["", *_notes(found), ""]), "\n".join(_step_lines(found))
    return Group(Text(head), _table(found), Text(notes), Text(steps, no_wrap=True, overflow="ignore"))


def _notes(found: PlannedFleet) -> Iterator[str]:
    plan, names = found.plan, [printable(machine.name) for machine in found.machines]
    ends = in_bytes(found.asked.cost.client.bytes)
    yield f"{names[0]} has the gateway, whose ends take {ends} of its memory."
    if plan.gateway_busy > 1:
        yield (
            f"{names[0]} would be busy for {plan.gateway_busy:.1f} s in each second, "
            f"{plan.gateway_heads:.1f} s of it with heads: a faster machine as the first would help."
        )
    for one in plan.left_out:
        lacking = in_bytes(one.lacking)
        yield f"{names[one.machine]} serves nothing: it lacks {lacking} for one block with its KV."
    if found.stand_ins:
        unsaid = many(len(found.stand_ins), "machine")
        yield (
            f"The file does not say how fast {unsaid} are: this one's speed stands in. "
            "shoal bench device measures a machine's own."
        )
    yield "This is the most that memory, arithmetic and links allow; nobody reaches all of it."


def _table(found: PlannedFleet) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    rows.add_column("machine", overflow="fold")
    for heading in ("route", "blocks", "weights", "KV", "memory", "left"):
        rows.add_column(heading, justify="right")
    order = found.plan.places
    for place in sorted(order, key=lambda one: (one.route is None, one.route or 0, one.span.start)):
        figures = [
            "beside" if place.route is None else str(place.route + 1),
            str(place.span),
            in_bytes(place.weights),
            in_bytes(place.kv),
            in_bytes(place.room),
            in_bytes(place.room - place.weights - place.kv),
        ]
        rows.add_row(Text(printable(found.machines[place.machine].name)), *figures)
    return rows


def _step_lines(found: PlannedFleet) -> Iterator[str]:
    """What a shell takes: where to run it is a comment."""
    yield "# What serves, and the gateway, run until they are stopped: give each a terminal or a service."
    if any(command.endswith("< invite") for step in found.steps for command in step.commands):
        yield "# The first makes the file `invite` once it serves. Copy it to the others: it is a secret."
    for step in found.steps:
        yield ""
        yield f"# {printable(step.machine)}{f', {printable(step.address)}' if step.address else ''}"
        yield from step.commands
    yield ""
    yield f"# Then, anywhere: each block must be served by {min(found.plan.peers)} at least."
    yield found.check
