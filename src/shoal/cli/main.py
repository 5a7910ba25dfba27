"""The `shoal` command: every subcommand, and the one place where errors become exit codes.

A command's module is imported when that command is asked for: `shoal --help` must answer at once.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import typer
import typer.main
from typer.exceptions import TyperException

from shoal import process_environ
from shoal.cli.options import debugging, flag, remember
from shoal.cli.output import report, wants_json
from shoal.cli.shell import completion
from shoal.cli.shell.lazy_group import Lazy, LazyGroup
from shoal.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ShoalError,
    UsageError,
    as_shoal_error,
    caused_by,
)


class Commands(LazyGroup):
    """Every subcommand, in the order in which a newcomer needs them."""

    lazy: ClassVar[Mapping[str, Lazy]] = {
        "up": Lazy("node.node", "Join the swarm and serve the blocks it needs most."),
        "serve": Lazy("node.node", "Serve a span of MODEL."),
        "gateway": Lazy("gateway.gateway", "Serve OpenAI's API and a web page for a swarm."),
        "launch": Lazy("launch.launch", "Start another program with what it needs to use the gateway."),
        "invite": Lazy("swarms", "Print an invite to the swarm."),
        "join": Lazy("swarms", "Join a swarm with an invite."),
        "run": Lazy("chat.chat", "Answer one prompt."),
        "chat": Lazy("chat.chat", "Chat with a model."),
        "embed": Lazy("embed", "Turn texts into vectors."),
        "transcribe": Lazy("audio.transcribe", "Write down what is said in a recording."),
        "infer": Lazy("graph.infer", "Run a graph: arrays in, arrays out."),
        "tune": Lazy(
            "tune.tune",
            "Tune a LoRA adapter or a soft prompt of MODEL through the nodes that serve it; data stay here.",
        ),
        "federate": Lazy(
            "federate.federate", "Tune an adapter together with others, whose data stay where they are."
        ),
        "rollouts": Lazy("rollouts.rollouts", "Make many samples of each prompt with MODEL."),
        "status": Lazy("status.status", "Show what the swarm serves."),
        "peers": Lazy("status.status", "List the peers of the swarm."),
        "market": Lazy("status.market", "List what the swarm offers."),
        "ping": Lazy("status.status", "Measure latency to a peer."),
        "models": Lazy("models", "List, fetch, share, remove and show models."),
        "key": Lazy("key", "Create, list and revoke API keys."),
        "credits": Lazy("ledger.credits", "Show what peers of the swarm gave this machine and took from it."),
        "wallet": Lazy("ledger.wallet", "Pay and be paid over a test chain."),
        "identity": Lazy("identity", "Show or create this machine's identity."),
        "operator": Lazy("trust.operator", "Sign that several machines are yours."),
        "doctor": Lazy("doctor.doctor", "Check this machine's setup."),
        "demo": Lazy("demo.demo", "Try Shoal on this machine."),
        "bench": Lazy("bench", "Measure this machine."),
        "plan": Lazy("plan.plan", "Estimate how fast given machines would run a model."),
        "fleet": Lazy("plan.fleet", "Plan what each of many machines should run."),
        "route": Lazy("status.route", "Show the route that a session would take now."),
        "privacy": Lazy("doctor.privacy", "Show what peers could read of a text."),
        "verify": Lazy(
            "trust.verify", "Check who has signed an answer, and whether it is what the model gives."
        ),
        "audits": Lazy(
            "trust.audits", "Show what audits and canaries have cost on this machine, and who was found out."
        ),
        "config": Lazy("configuration", "Show the options, or write a config.toml."),
        "service": Lazy("service", "Run `shoal up` as a systemd user service."),
        "completion": Lazy("shell.completion", "Install shell completion."),
        "version": Lazy("version", "Print the versions of Shoal and its main dependencies."),
    }


app = typer.Typer(
    name="shoal",
    cls=Commands,
    help="Run AI models that no single machine can hold, over a swarm of ordinary machines.",
    no_args_is_help=True,
    add_completion=False,  # `shoal completion` does it
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def before(
    log_level: Annotated[str | None, flag("log_level")] = None,
    log_format: Annotated[str | None, flag("log_format")] = None,
) -> None:
    remember(log_level=log_level, log_format=log_format)


def main() -> None:
    """Run the command line of this process and end it with the command's exit code."""
    process_environ.share_cores()
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
    except BaseException as error:  # noqa: BLE001  the last stop: every error becomes a line and an exit code
        return _end(error, as_json)


def _end(error: BaseException, as_json: bool) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILURE
    if caused_by(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if caused_by(error, BrokenPipeError):
        # The reader of our stdout has left; nothing is to be said, and Python's own last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
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
        check="run it again; if the error comes back, please report it with its traceback",
        next_command="the same command with SHOAL_LOG_LEVEL=debug, for the traceback",
    )
