"""`shoal run`: where its prompt comes from."""

from __future__ import annotations

import io

import pytest

from shoal.cli.chat import chat
from shoal.cli.chat.chat import whole_prompt
from shoal.errors import UsageError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_argument_alone() -> None:
    assert whole_prompt("why?", Terminal("typed later")) == "why?"


def test_a_pipe_alone_loses_only_its_last_line_end() -> None:
    assert whole_prompt(None, io.StringIO("  a\n\nb\n")) == "  a\n\nb"


def test_what_is_piped_comes_behind_the_argument() -> None:
    assert whole_prompt("Summarise:", io.StringIO("text\n")) == "Summarise:\n\ntext"


@pytest.mark.parametrize("stdin", [io.StringIO(""), io.StringIO("\n"), Terminal("")])
def test_no_prompt_at_all_is_refused(stdin: io.StringIO) -> None:
    with pytest.raises(UsageError, match="no prompt"):
        whole_prompt(None, stdin)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        whole_prompt(None, io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))


def test_what_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_STDIN", 10)
    with pytest.raises(UsageError, match="longer"):
        whole_prompt(None, io.StringIO("x" * 11))
