"""`shoal launch`: start a program of others with what it needs to use this machine's gateway."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal import process_environ
from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.gateway.page.apps import App, ConfigFile, GatewayAddress, Setup

Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="claude, opencode, goose, aider, open-webui or continue."),
]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="What the program is started with.")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The gateway; if not given, this machine's.", show_default=False)
]
KeyOption = Annotated[
    str | None, typer.Option("--key", help="API key, where the gateway wants one.", show_default=False)
]
ListOption = Annotated[bool, typer.Option("--list", help="List the programs, and which are installed.")]
PrintOption = Annotated[bool, typer.Option("--print", help="Print what would be done, and do nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Write a configuration file without asking.")]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Replace a configuration file that is there; the old one is kept.")
]


def register(app: typer.Typer) -> None:
    app.command()(launch)


def launch(
    name: Name = None,
    arguments: Arguments = None,
    url: UrlOption = None,
    key: KeyOption = None,
    model: options.ModelOption = None,
    show_list: ListOption = False,
    show: PrintOption = False,
    yes: YesOption = False,
    replace: ReplaceOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Start another program with what it needs to use the gateway."""
    from shoal.cli.launch.gateway import choose_model, models_at, url_of
    from shoal.gateway.page.apps import APPS, KEY_HINT, NO_KEY, GatewayAddress

    if show_list:
        found = [_listed(app) for app in APPS]
        emit({"apps": found}, as_json, lambda: _table(found))
        return
    app = next((one for one in APPS if one.name == name), None)
    if app is None:
        said = "the program's name is missing" if name is None else f"{name!r} is not among the programs"
        names = ", ".join(one.name for one in APPS)
        raise UsageError(said, check=f"choose one of: {names}", next_command="shoal launch --list")
    settings = options.settings(model=model)
    where = url_of(settings, url)
    if show:
        place = GatewayAddress(where, settings.model, NO_KEY if key is None else KEY_HINT)
        fields = {"name": app.name, "lines": app.lines(place), "path": shutil.which(app.program)}
        emit(fields, as_json, lambda: app.lines(place))
        return
    path = shutil.which(app.program)
    if path is None and app.setup(GatewayAddress("", "")).config is None:
        raise UsageError(
            f"{app.title} is not installed: there is no {app.program}",
            check="install it and try again",
            next_command=app.install,
        )
    chosen = choose_model(models_at(where, key), model, settings.model)
    setup = app.setup(GatewayAddress(where, chosen, key or NO_KEY))
    shown = GatewayAddress(where, chosen, KEY_HINT if key else NO_KEY)
    if setup.config is not None and not _configure(setup.config, app.lines(shown), yes=yes, replace=replace):
        raise typer.Exit(1)
    if app.note:
        say(f"note: {app.note}")
    if path is None:
        say(f"{app.program} is not installed, so nothing is started: {app.install}")
        return
    _say_setup(app, shown)
    raise typer.Exit(_start(path, [*setup.arguments, *(arguments or [])], setup))


def _listed(app: App) -> dict[str, Any]:
    return {
        "name": app.name,
        "title": app.title,
        "installed": shutil.which(app.program) or "",
        "install": app.install,
    }


def _table(found: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    rows = Table(box=None, pad_edge=False)
    for heading in ("name", "program", "installed", "to install it"):
        rows.add_column(heading, overflow="fold")
    for app in found:
        rows.add_row(
            app["name"], app["title"], app["installed"] or "no", "" if app["installed"] else app["install"]
        )
    return rows


def _configure(file: ConfigFile, shown: str, *, yes: bool, replace: bool) -> bool:
    """See to it that the program's file says what it should; whether it does now.

    Args:
        shown: its text without the key, for who is asked.

    Raises:
        UsageError: somebody must be asked, and nobody is there.
    """
    from shoal.cli.launch.config_file import FileState, state_of, write

    path = Path.home() / file.path
    state = state_of(path, file.text)
    if state is FileState.SAME:
        say(f"{path} says so already")
        return True
    there = state is FileState.DIFFERENT
    agreed = replace if there else yes or replace
    if not agreed:
        question = f"{path} is there and says something else; replace it, and keep the old one?"
        flag = "--replace" if there else "--yes"
        if not _agrees(question if there else f"write {path}?", shown, flag):
            say("nothing was written")
            return False
    kept = write(path, file.text)
    say(f"wrote {path}" + (f"; the old one is {kept}" if kept else ""))
    return True


def _agrees(question: str, text: str, flag: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(
            f"{question} Nobody is there to ask", check=f"add {flag}, or see what it would be with --print"
        )
    say(text)
    return typer.confirm(question, err=True)


def _say_setup(app: App, shown: GatewayAddress) -> None:
    """What the program is started with; ``shown`` has no key."""
    for name, value in app.setup(shown).environ.items():
        say(f"{name}={value}", dim=True)
    say(f"starting {app.title} with {shown.model}")


def _start(path: str, arguments: list[str], setup: Setup) -> int:
    """Run the program until it ends; Ctrl-C is for it alone. Returns its exit code."""
    environ = process_environ.child_environ(**setup.environ)
    try:
        process = subprocess.Popen([path, *arguments], env=environ)
    except OSError as error:
        said = f"{path} cannot be started: {error.strerror}"
        raise UsageError(said, check="try to start it yourself") from error
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with process:
            code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return 128 - code if code < 0 else code
