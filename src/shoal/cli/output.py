"""What a command says: data on stdout, everything else on stderr, errors in one shape."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.errors import Busy, NoCoverage, ShoalError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def wants_json(argv: Sequence[str]) -> bool:
    """Whether ``--json`` is among the options, known even when the command line does not parse."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in options


def emit(data: object, as_json: bool, render: Callable[[], RenderableType]) -> None:
    """Print ``data`` on stdout: one JSON object on one line, or what ``render`` makes of it for a reader.

    A plain string is printed as it is, whatever its length.
    """
    if as_json:
        sys.stdout.write(to_json(data) + "\n")
        sys.stdout.flush()  # a program may read along, as of a demo that goes on
        return
    shown = render()
    if isinstance(shown, str):
        sys.stdout.write(shown + "\n")
        return
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(shown)
        return
    # Off a terminal rich would cut at 80 columns, and fill up with blanks, what a program wants as it is.
    console = Console(width=240, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


def check_output(file: Path | None, *suffixes: str) -> None:
    """Find out before anything is asked whether a file can be written; without one, nothing is checked.

    Args:
        suffixes: those that its name may end in; any if none is given.

    Raises:
        UsageError: its name ends otherwise, its folder is not there, or it may not be written.
    """
    if file is None:
        return
    folder = file.absolute().parent
    if suffixes and file.suffix not in suffixes:
        raise UsageError(f"{file} cannot be written: its name must end in {' or '.join(suffixes)}")
    if not folder.is_dir():
        raise UsageError(
            f"{file} cannot be written: there is no folder {folder}", check="make the folder first"
        )
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise UsageError(
            f"{file} cannot be written: it is a folder, or you have no permission to write it",
            check="choose another file",
        )


def to_json(data: object) -> str:
    """One line of JSON; paths and other foreign types as text."""
    return msgspec.json.encode(data, enc_hook=str).decode()


def say(text: str, *, dim: bool = False) -> None:
    """A line for the person at the terminal, on stderr; ``dim`` for what is only worth a glance."""
    line = printable(text)
    say_raw(f"\x1b[2m{line}\x1b[0m" if dim and sys.stderr.isatty() else line)


def many(count: int, one: str) -> str:
    """``1 token``, ``3 tokens``."""
    return f"{count} {one}" if count == 1 else f"{count} {one}s"


def printable(text: str) -> str:
    """Text of a peer or a model without the control characters that could drive a terminal."""
    return _CONTROLS.sub("�", text)


def error_fields(error: ShoalError) -> dict[str, Any]:
    """An error as ``--json`` shows it."""
    fields: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "check": error.check,
        "next_command": error.next_command,
        "exit_code": error.exit_code,
    }
    if isinstance(error, NoCoverage):
        fields["missing"] = [str(span) for span in error.missing]
    if isinstance(error, Busy):
        fields |= {"retry_after_s": error.retry_after_s, "tokens_free": error.tokens_free}
    return fields


def report(error: ShoalError, as_json: bool) -> None:
    """Show an error: what is wrong, what to check, what to type next."""
    if as_json:
        sys.stdout.write(to_json({"error": error_fields(error)}) + "\n")
        sys.stdout.flush()
        return
    lines = [("error", error.message), ("check", error.check), ("try", error.next_command)]
    width = max(len(name) for name, _ in lines) + 2
    colour = sys.stderr.isatty()
    for name, text in lines:
        if text:
            head = f"{name}:".ljust(width)
            if colour:
                head = f"\x1b[{'1;31' if name == 'error' else '1'}m{head}\x1b[0m"
            say_raw(head + printable(text))


def say_raw(line: str) -> None:
    """A line on stderr that may hold our own colours."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
