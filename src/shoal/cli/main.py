"""The `shoal` command: every subcommand, and the one place where errors become exit codes.

Nothing heavy is imported before the command that needs it runs: `shoal --help` must answer at once.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
import typer.main
from typer.exceptions import TyperException

from shoal import config
from shoal.cli import (
    bench,
    chat,
    completion,
    configuration,
    demo,
    doctor,
    gateway,
    identity,
    key,
    models,
    node,
    plan,
    route,
    service,
    status,
    swarms,
    version,
)
from shoal.cli.options import debugging, remember
from shoal.cli.output import as_shoal_error, interrupted, report, wants_json
from shoal.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, ShoalError, UsageError

app = typer.Typer(
    name="shoal",
    help="Run AI models that no single machine can hold, over a swarm of ordinary machines.",
    no_args_is_help=True,
    add_completion=False,  # `shoal completion` does it
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def before(
    log_level: Annotated[
        str | None,
        typer.Option(help="Least severity on stderr: debug, info, warning or error.", show_default=False),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="Lines on stderr: text or json.", show_default=False)
    ] = None,
) -> None:
    remember(log_level=log_level, log_format=log_format)


for group in (node, gateway, swarms, chat, status, models, key, identity, doctor, demo, bench, plan, route):
    group.register(app)
for group in (configuration, service, completion, version):
    group.register(app)


def main() -> None:
    """Run the command line of this process and end it with the command's exit code."""
    config.share_cores()
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str], commands: typer.Typer = app, name: str = "shoal") -> int:
    """Run one command line and return its exit code. Errors are shown, never raised."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model may write what the terminal's encoding lacks; that must not end the answer.
            stream.reconfigure(errors="replace")
    as_json = wants_json(argv)
    completion.answer_shells()
    try:
        code = typer.main.get_command(commands).main(list(argv), prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except TyperException as error:
        return _show(_usage(error), as_json)
    except BrokenPipeError:
        # The reader of our stdout has left; nothing is to be said, and Python's own last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except BaseException as error:  # noqa: BLE001  the last stop: every error becomes a line and an exit code
        return _end(error, as_json)


def _end(error: BaseException, as_json: bool) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILURE
    if interrupted(error):
        return EXIT_INTERRUPTED
    known = as_shoal_error(error)
    if debugging():
        traceback.print_exception(error)
    return _show(known or _defect(error), as_json)


def _show(error: ShoalError, as_json: bool) -> int:
    report(error, as_json)
    return error.exit_code


def _usage(error: TyperException) -> ShoalError:
    """What typer says about a command line, as an error of ours."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "shoal"
    message = getattr(error, "format_message", lambda: str(error))()
    if not message or message.startswith("Usage:"):  # typer's own answer to a group without a command
        return UsageError("the command is missing", next_command=f"{path} --help")
    return UsageError(message, next_command=f"{path} --help")


def _defect(error: BaseException) -> ShoalError:
    return ShoalError(
        f"a defect of Shoal: {type(error).__name__}: {error}",
        check="whether the same happens again; then please report it with its traceback",
        next_command="SHOAL_LOG_LEVEL=debug and the same command, for the traceback",
    )
