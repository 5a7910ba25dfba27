"""Which lines are commands, and what is asked by those that are not."""

from __future__ import annotations

import pytest

from shoal.cli.chat.commands import COMMANDS, help_text, parse, question
from shoal.errors import UsageError


@pytest.mark.parametrize(
    ("line", "name", "argument"),
    [
        ("/help", "help", ""),
        ("  /new  ", "new", ""),
        ("/system Be brief.\nAnd kind.", "system", "Be brief.\nAnd kind."),
        ("/exit", "quit", ""),
        ("/load a b.json", "load", "a b.json"),
    ],
)
def test_a_line_that_is_a_command(line: str, name: str, argument: str) -> None:
    found = parse(line)
    assert found is not None
    assert (found[0].name, found[1]) == (name, argument)


@pytest.mark.parametrize("line", ["why?", "/etc/hosts is what?", "/ what?", "1/2?", "//help", "/Users/x"])
def test_a_line_that_is_a_question(line: str) -> None:
    assert parse(line) is None


def test_a_question_may_begin_with_a_slash() -> None:
    assert question(" //help is what? ") == "/help is what?"
    assert question(" why? ") == "why?"


@pytest.mark.parametrize(
    ("line", "says"),
    [("/hlep", "no command /hlep"), ("/new fish", "takes no argument"), ("/load", "needs FILE")],
)
def test_a_command_that_makes_no_sense_is_told(line: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse(line)
    assert caught.value.next_command == "/help"


def test_help_lists_them_all() -> None:
    for command in COMMANDS:
        assert f"/{command.name}" in help_text()
        assert command.about in help_text()
