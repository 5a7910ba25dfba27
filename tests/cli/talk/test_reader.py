"""How questions are read: from a pipe, and from a terminal with its keys."""

from __future__ import annotations

import io
import json
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from shoal.cli.chat import history, reader
from shoal.cli.chat.history import KeptHistory
from shoal.cli.chat.reader import LineReader, TerminalReader
from shoal.errors import UsageError


async def lines(text: str) -> list[str]:
    found: list[str] = []
    piped = LineReader(io.StringIO(text))
    while (line := await piped.read()) is not None:
        found.append(line)
    return found


async def test_a_pipe_gives_its_lines_but_the_blank_ones() -> None:
    assert await lines("why?\n\n  \nhow?") == ["why?", "how?"]


async def test_a_backslash_joins_the_next_line() -> None:
    assert await lines("a\\\n\\\nb\nc\\") == ["a\n\nb", "c"]


async def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LINE", 10)
    with pytest.raises(UsageError, match="longer"):
        await lines("x" * 11)


async def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        await LineReader(io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8")).read()


def test_without_a_terminal_lines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert isinstance(reader.reader(tmp_path / "history"), LineReader)


class Typist(NamedTuple):
    keys: PipeInput
    history: Path

    def sits_down(self) -> TerminalReader:
        return TerminalReader(self.history, ["/help"], keys=self.keys, screen=DummyOutput())


@pytest.fixture
def typist(tmp_path: Path) -> Generator[Typist]:
    with create_pipe_input() as keys:
        yield Typist(keys, tmp_path / "data" / "history")


ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A"


async def test_enter_sends_and_ctrl_d_ends(typist: Typist) -> None:
    terminal = typist.sits_down()
    typist.keys.send_text(f"why?{ENTER}{ENTER}how?{ENTER}{CTRL_D}")
    assert [await terminal.read() for _ in range(3)] == ["why?", "how?", None]


async def test_alt_enter_and_a_backslash_begin_another_line(typist: Typist) -> None:
    typist.keys.send_text(f"a{ALT_ENTER}b\\{ENTER}c{ENTER}")
    assert await typist.sits_down().read() == "a\nb\nc"


async def test_what_is_pasted_stays_one_question(typist: Typist) -> None:
    typist.keys.send_text(f"\x1b[200~a\nb\n\x1b[201~{ENTER}")
    assert await typist.sits_down().read() == "a\nb\n"


async def test_ctrl_c_forgets_what_is_typed_and_then_ends(typist: Typist) -> None:
    terminal = typist.sits_down()
    typist.keys.send_text(f"never mind{CTRL_C}why?{ENTER}")
    assert await terminal.read() == "why?"
    typist.keys.send_text(CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        await terminal.read()


async def test_the_arrow_brings_back_what_an_earlier_conversation_asked(typist: Typist) -> None:
    terminal = typist.sits_down()
    typist.keys.send_text(f"first{ENTER}")
    assert await terminal.read() == "first"
    typist.keys.send_text(f"second{ENTER}")
    assert await terminal.read() == "second"
    later = typist.sits_down()
    typist.keys.send_text(f"{UP}{UP}{ENTER}")
    assert await later.read() == "first"


async def test_a_read_that_is_cancelled_gives_the_terminal_back(typist: Typist) -> None:
    terminal = typist.sits_down()
    with trio.fail_after(10):
        with trio.move_on_after(0.2) as given_up:
            await terminal.read()
        assert given_up.cancelled_caught
        typist.keys.send_text(f"why?{ENTER}")
        assert await terminal.read() == "why?"


def test_the_history_is_the_users_own_and_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_ENTRIES", 3)
    path = tmp_path / "data" / "history"
    kept = KeptHistory(path)
    for number in range(5):
        kept.append_string(f"question\n{number}")
    kept.append_string("x" * (history.MAX_LENGTH + 1))
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(KeptHistory(path).load_history_strings()) == [f"question\n{n}" for n in (4, 3, 2)]
    assert len(path.read_text().splitlines()) == 3
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_history_that_was_half_written_loses_only_that(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text(json.dumps("why?") + '\n"ho\n7\n')
    assert list(KeptHistory(path).load_history_strings()) == ["why?"]
