"""``python -m shoal.testing.lab kill|freeze|churn|pay``: does a swarm keep its promises, here and now?"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import trio
import typer

from shoal import process_environ
from shoal.cli import main, options
from shoal.cli.output import emit
from shoal.cli.progress import working
from shoal.testing.lab.plan import Kind, LabOptions, LabPlan, read

PlanFile = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="A plan of your own, in TOML or JSON.")
]
LabSeedOption = Annotated[int, typer.Option(help="The same seed makes the same plan.")]
Runs = Annotated[int, typer.Option(help="How many runs; 0 leaves it to the plan.", min=0, max=10_000)]
Folder = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Where the nodes' homes and logs are to stay.")
]

app = typer.Typer(
    name="lab",
    help="Real nodes on this machine that are killed, frozen and brought back while they answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def kill(
    plan: PlanFile = None,
    seed: LabSeedOption = 0,
    runs: Runs = 0,
    model: options.ModelOption = None,
    format: options.FormatOption = None,
    folder: Folder = None,
    as_json: options.JsonOption = False,
) -> None:
    """SIGKILL hops in the prefill and in the middle of answers."""
    _carry_out("kill", plan, seed, runs, model, format, folder, as_json)


@app.command()
def freeze(
    plan: PlanFile = None,
    seed: LabSeedOption = 0,
    runs: Runs = 0,
    model: options.ModelOption = None,
    format: options.FormatOption = None,
    folder: Folder = None,
    as_json: options.JsonOption = False,
) -> None:
    """SIGSTOP hops, their sockets open, and let them go on later."""
    _carry_out("freeze", plan, seed, runs, model, format, folder, as_json)


@app.command()
def churn(
    plan: PlanFile = None,
    seed: LabSeedOption = 0,
    minutes: Annotated[float, typer.Option(help="How long.", min=0.1, max=1440)] = 5.0,
    sessions: Annotated[int, typer.Option(help="Answers at once.", min=1, max=256)] = 4,
    liars: Annotated[
        int, typer.Option(help="Members beside the nodes that blame, stall and refuse.", min=0, max=64)
    ] = 0,
    model: options.ModelOption = None,
    format: options.FormatOption = None,
    folder: Folder = None,
    as_json: options.JsonOption = False,
) -> None:
    """Every few seconds a node is killed, leaves, freezes or comes, while several sessions go on."""
    _carry_out("churn", plan, seed, 0, model, format, folder, as_json, minutes, sessions, liars)


@app.command()
def pay(
    runs: Annotated[int, typer.Option(help="How many kills.", min=0, max=1000)] = 20,
    answers: Annotated[
        int, typer.Option(help="How many answers are timed, paid and unpaid; 0: none.", min=0, max=10_000)
    ] = 100,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=1, max=512)] = 32,
    seed: LabSeedOption = 0,
    anvil: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The chain's program, if it is not on the PATH.")
    ] = None,
    model: options.ModelOption = None,
    format: options.FormatOption = None,
    folder: Folder = None,
    as_json: options.JsonOption = False,
) -> None:
    """Answers paid over a chain, and SIGKILL for client, hop or chain."""
    settings = options.settings(model=model, format=format)
    with working("lab pay") as progress:
        from shoal.testing.lab.pay.lab import PayOrder, run_pay_lab  # noqa: PLC0415  as of the others
        from shoal.testing.lab.pay.report import pay_table  # noqa: PLC0415

        order = PayOrder(
            model=settings.model,
            format=settings.asked_format,
            seed=seed,
            runs=runs,
            answers=answers,
            tokens=tokens,
            anvil=anvil,
            folder=folder,
        )
        report = trio.run(partial(run_pay_lab, settings, order, progress))
    emit(report.fields(), as_json, lambda: pay_table(report))
    if report.faults:
        raise typer.Exit(1)


def _carry_out(
    kind: Kind,
    plan: Path | None,
    seed: int,
    runs: int,
    model: str | None,
    format: str | None,
    folder: Path | None,
    as_json: bool,
    minutes: float = 0.0,
    sessions: int = 1,
    liars: int = 0,
) -> None:
    settings = options.settings(model=model, format=format)
    read_plan = read(plan) if plan else LabPlan()
    flags = {"model": model or read_plan.model, "format": settings.asked_format or read_plan.format}
    chosen = msgspec.structs.replace(read_plan, **flags)
    order = LabOptions(kind, chosen, seed, runs, minutes, sessions, liars, folder)
    with working(f"lab {kind}") as progress:
        # Torch takes seconds to import: what can be said without it has been said.
        from shoal.testing.lab.lab import run_lab  # noqa: PLC0415
        from shoal.testing.lab.report import report_table  # noqa: PLC0415

        report = trio.run(partial(run_lab, settings, order, progress))
    emit(report.fields(), as_json, lambda: report_table(report))
    if report.faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    process_environ.share_cores()
    sys.exit(main.run(sys.argv[1:], app, "python -m shoal.testing.lab"))
