"""`shoal operator`: one key for whoever runs several machines, and what it signs about each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.errors import ShoalError, UsageError

DAYS = 365


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Sign that several machines are yours.", no_args_is_help=True)
    for command in (create, sign, show):
        group.command()(command)
    app.add_typer(group, name="operator")


def create(as_json: options.JsonOption = False) -> None:
    """Create an operator's key if there is none, and print its id. Keep it on one machine."""
    from shoal.net.identity import Identity

    where = options.settings().paths.operator
    operator = Identity.load_or_create(where)
    emit({"operator": operator.peer, "path": where}, as_json, lambda: operator.peer)


def sign(
    peer: Annotated[
        str,
        typer.Argument(metavar="PEER", help="The whole id of a machine, as shoal identity show prints it."),
    ],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the statement holds.")] = DAYS,
) -> None:
    """Print a statement that a machine is yours. Put it into a file there, for shoal serve --operator FILE.

    It is no secret: the machine announces it.
    """
    from shoal.net.identity import Identity, public_key
    from shoal.trust.operator import OperatorFile, state
    from shoal.types import PeerId

    where = options.settings().paths.operator
    try:
        public_key(PeerId(peer))
    except ValueError as error:
        raise UsageError(str(error), check="give the whole id", next_command="shoal identity show") from error
    try:
        operator = Identity.load(where)
    except FileNotFoundError:
        raise ShoalError(
            "this machine has no operator's key",
            check=f"sign on the machine that has it, or see whether {where} was moved or deleted",
            next_command="shoal operator create",
        ) from None
    statement = state(operator.peer, PeerId(peer), time.time(), days, operator.sign)
    typer.echo(OperatorFile.of(peer, statement).encoded().decode(), nl=False)
    say(f"it holds until {_day(statement.not_after)}: sign anew before that")


def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A statement; this machine's key if not given.")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Print the operator's id, or what a statement says."""
    from shoal.cli.trust.statement_file import read_statement_file
    from shoal.net.identity import Identity
    from shoal.swarm.names import name_of

    if file is not None:
        found = read_statement_file(file)
        holds = found.not_before <= time.time() <= found.not_after
        shown = {
            "operator": found.operator,
            "peer": found.peer,
            "not_before": found.not_before,
            "not_after": found.not_after,
            "holds": holds,
        }
        until = (
            f"until {_day(found.not_after)}"
            if holds
            else f"from {_day(found.not_before)} to {_day(found.not_after)}, not now"
        )
        said = f"{name_of(found.peer)} ({found.peer}) is a machine of {found.operator}, {until}"
        emit(shown, as_json, lambda: said)
        return
    where = options.settings().paths.operator
    try:
        operator = Identity.load(where)
    except FileNotFoundError:
        raise ShoalError("this machine has no operator's key", next_command="shoal operator create") from None
    emit({"operator": operator.peer, "path": where}, as_json, lambda: operator.peer)


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
