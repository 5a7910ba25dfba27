"""`shoal completion`: let the shell complete commands, options and names."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.errors import UsageError

PROGRAM = "shoal"
SHELLS = ("bash", "zsh", "fish", "pwsh")
Shell = Annotated[
    str | None,
    typer.Argument(help=f"{', '.join(SHELLS)}; this shell if not given.", show_default=False),
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Install shell completion.", no_args_is_help=True)
    group.command()(install)
    group.command()(show)
    app.add_typer(group, name="completion")


def install(shell: Shell = None, as_json: options.JsonOption = False) -> None:
    """Install completion for your shell. It works in the next terminal you open."""
    from typer.completion import install as put  # pyright: ignore[reportPrivateImportUsage]

    name, path = put(shell=_known(shell), prog_name=PROGRAM)
    emit({"shell": name, "path": path}, as_json, lambda: f"{path}")
    if not as_json:
        say(f"completion for {name} works in the next terminal you open")


def show(shell: Shell = None) -> None:
    """Print the completion script, to install it yourself."""
    from typer.completion import get_completion_script  # pyright: ignore[reportPrivateImportUsage]

    script = get_completion_script(
        prog_name=PROGRAM, complete_var=f"_{PROGRAM.upper()}_COMPLETE", shell=_known(shell)
    )
    emit(script, False, lambda: script)


def answer_shells() -> None:
    """Let this process answer a shell that asks for completions, as it does through the environment."""
    from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

    completion_init()


def _known(shell: str | None) -> str:
    """The shell to work for.

    Raises:
        UsageError: it is not one that we know, or none was named and it cannot be told.
    """
    name = shell or _this_shell()
    if name not in SHELLS:
        raise UsageError(
            f"there is no completion for {name!r}" if name else "cannot tell which shell this is",
            check=f"choose one of: {', '.join(SHELLS)}",
            next_command="shoal completion show bash",
        )
    return name


def _this_shell() -> str:
    import shellingham

    try:
        name, _ = shellingham.detect_shell()
    except shellingham.ShellDetectionFailure:
        return ""
    return str(name)
