"""The words that a line may begin with instead of being a question. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shoal.errors import UsageError


@dataclass(frozen=True, slots=True)
class Command:
    """One `/word` and what it does."""

    name: str
    argument: str
    """How ``/help`` names what may follow; empty when nothing may."""
    about: str


COMMANDS = (
    Command("help", "", "show this list"),
    Command("new", "", "start a new conversation with the same model and system message"),
    Command("model", "[NAME]", "list the models that the swarm serves, or switch to another"),
    Command("system", "[TEXT]", 'show or change the system message; "" removes it'),
    Command("retry", "", "ask the last question again"),
    Command("route", "", "show which peers gave the last answer, and their timings"),
    Command("save", "[FILE]", "save the conversation to a new file"),
    Command("load", "FILE", "continue a saved conversation"),
    Command("quit", "", "end the chat; Ctrl-D does too"),
)
NAMES = {command.name: command for command in COMMANDS} | {"exit": COMMANDS[-1]}

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


def parse(line: str) -> tuple[Command, str] | None:
    """The command that ``line`` is and what follows it; ``None`` for a question.

    A path such as ``/etc/hosts`` is no command, and a question may begin with ``//`` to pass for one.

    Raises:
        UsageError: no such command, or one that takes nothing was given something.
    """
    match = _COMMAND.fullmatch(line.strip())
    if match is None:
        return None
    name, argument = match[1], (match[2] or "").strip()
    command = NAMES.get(name)
    if command is None:
        raise UsageError(f"there is no command /{name}", next_command="/help")
    if argument and not command.argument:
        raise UsageError(f"/{name} takes no argument", next_command="/help")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"/{name} needs {command.argument}", next_command="/help")
    return command, argument


def question(line: str) -> str:
    """What is asked by a line that is no command."""
    text = line.strip()
    return text[1:] if text.startswith("//") else text


def help_text() -> str:
    """Every command, one a line, and the keys."""
    width = max(len(f"/{c.name} {c.argument}") for c in COMMANDS)
    lines = [f"{f'/{c.name} {c.argument}':{width}}  {c.about}" for c in COMMANDS]
    return "\n".join([*lines, "", KEYS])


KEYS = (
    "Enter sends; Alt-Enter, or a \\ at the end of a line, begins another line. The arrows bring back what\n"
    "was typed before. Ctrl-C stops an answer; at the prompt it ends the conversation."
)
