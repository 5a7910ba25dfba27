"""Commands that are imported when one of them is asked for, so that `shoal --help` answers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, cast

import typer
import typer.main
from typer.core import TyperGroup


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is not imported yet."""

    module: str
    """Of :mod:`shoal.cli`; its ``register`` adds the command to an app."""
    help: str
    """The first sentence of the command's own help."""


class LazyCommands(Mapping[str, Any]):
    """Commands by name: those that wait to be imported, in the order of the help, then those that do not."""

    def __init__(self, lazy: Mapping[str, Lazy], built: Mapping[str, Any]) -> None:
        self._lazy = lazy
        self._built = dict(built)

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            app = typer.Typer(rich_markup_mode=None)
            import_module(f"shoal.cli.{self._lazy[name].module}").register(app)
            self._built |= cast("Mapping[str, Any]", typer.main.get_group(app).commands)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._lazy, **self._built})

    def __len__(self) -> int:
        return len({**self._lazy, **self._built})


class LazyGroup(TyperGroup):
    """What ``typer.Typer(cls=…)`` takes; a subclass names its commands."""

    lazy: ClassVar[Mapping[str, Lazy]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = LazyCommands(self.lazy, self.commands)  # pyright: ignore[reportAttributeAccessIssue]

    def list_commands(self, ctx: Any) -> list[str]:
        """The names alone; the base class looks at the commands too."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of the help, without importing what it lists."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.lazy.items()])
