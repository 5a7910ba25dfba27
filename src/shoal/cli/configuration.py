"""`shoal config`: every option, what it means, and where its value comes from.

What an option means is written once, in :class:`shoal.config.Settings`.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from shoal import config
from shoal.cli import options
from shoal.cli.output import emit, printable
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.option_values import without_password

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100
HEAD = """\
Shoal's options. Each can also be given as a flag, or as SHOAL_<OPTION> in the environment; the first
of flag, environment and this file counts. A line that begins with "# " and has a "=" shows a default:
take the "# " away to change it."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option as the file has it."""

    name: str
    about: str
    default: Any


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Show the options, or write a config.toml.", no_args_is_help=True)
    for command in (show, path, init):
        group.command()(command)
    app.add_typer(group, name="config")


def show(as_json: options.JsonOption = False) -> None:
    """Print every option with its current value."""
    settings = options.settings()
    values = {option.name: _shown(settings, option.name) for option in documented()}
    emit({"path": settings.paths.config_file, "options": values}, as_json, lambda: table(settings))


def path(as_json: options.JsonOption = False) -> None:
    """Print the path of config.toml."""
    file = config.here().config_file
    emit({"path": file, "exists": file.exists()}, as_json, lambda: str(file))


def init(as_json: options.JsonOption = False) -> None:
    """Write a config.toml that explains every option and changes none."""
    file = config.here().config_file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text())
    except FileExistsError:
        raise UsageError(f"{file} already exists", next_command="shoal config show") from None
    emit({"path": file}, as_json, lambda: f"wrote {file}")


def documented() -> list[Option]:
    """Every option, in the order of ``Settings``."""
    defaults = Settings()
    return [Option(name, about, getattr(defaults, name)) for name, about in config.ABOUT.items()]


def text() -> str:
    """A whole ``config.toml`` that changes nothing: every line of it is a comment."""
    parts = [HEAD]
    for option in documented():
        about = textwrap.fill(option.about, WIDTH - 2, break_long_words=False)
        parts.append(f"{about}\n{option.name} = {to_toml(option.default)}")
    return "\n\n".join(textwrap.indent(part, "# ") for part in parts) + "\n"


def to_toml(value: Any) -> str:
    """A value of an option as TOML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(to_toml(item) for item in value)}]"  # pyright: ignore[reportUnknownVariableType]
    # TOML writes its texts, numbers and booleans as JSON does.
    return msgspec.json.encode(value).decode()


def _shown(settings: Settings, name: str) -> Any:
    """An option's value, without the password that it may hold."""
    value = getattr(settings, name)
    return without_password(value) if name == "database" and value else value


def table(settings: Settings) -> Table:
    """One line an option: its value, and what it means."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for heading in ("option", "value", "about"):
        rows.add_column(heading, overflow="fold")
    for option in documented():
        value = _shown(settings, option.name)
        style = "" if value == option.default else "bold"
        rows.add_row(option.name, Text(printable(to_toml(value)), style=style), Text(option.about))
    return rows
