"""How an answer looks while it comes: bytes as they are in a pipe, Markdown on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from shoal.cli.chat.screen import MarkdownScreen, PlainScreen, screen


def rendered(*pieces: str, height: int = 24) -> tuple[str, str]:
    """What was written to the terminal, all of it, and what of it was written for good."""
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=height, record=True)
    shown = MarkdownScreen(console)
    for piece in pieces:
        shown.write(piece)
        if shown._live is not None:
            shown._live.refresh()
    shown.close()
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue(), console.export_text()


def test_a_pipe_gets_what_the_model_said_and_a_line_end(capsys: pytest.CaptureFixture[str]) -> None:
    with screen() as shown:
        shown.write("**The** ")
        shown.write("sea\x1b[2J")
    assert isinstance(shown, PlainScreen)
    assert capsys.readouterr().out == "**The** sea\x1b[2J\n"


def test_no_answer_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with screen():
        pass
    assert capsys.readouterr().out == ""
    assert rendered() == ("", "")


def test_markdown_is_rendered() -> None:
    _, kept = rendered("Fish **swim**:\n\n- in `shoals`\n", "- and alone\n\n```python\nx = 1\n```\n")
    assert "**" not in kept
    assert "•" in kept
    assert "```" not in kept
    assert "x = 1" in kept


def test_every_block_is_kept_once_and_in_order() -> None:
    text = "\n\n".join(f"Paragraph {n}." for n in range(30))
    _, kept = rendered(*(text[i : i + 5] for i in range(0, len(text), 5)), height=8)
    assert [line for line in kept.split("\n") if line.strip()] != []
    for n in range(30):
        assert kept.count(f"Paragraph {n}.") >= 1


def test_what_comes_is_there_before_its_block_is_complete() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=24)
    shown = MarkdownScreen(console)
    shown.write("The sea is")
    assert shown._live is not None
    shown._live.refresh()
    assert isinstance(console.file, io.StringIO)
    assert "The sea is" in console.file.getvalue()
    shown.close()


def test_a_block_taller_than_the_terminal_shows_its_end_while_it_grows() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=6)
    shown = MarkdownScreen(console)
    shown.write("```\n" + "\n".join(f"line {n}" for n in range(40)))
    assert shown._live is not None
    shown._live.refresh()
    assert isinstance(console.file, io.StringIO)
    drawn = Text.from_ansi(console.file.getvalue()).plain
    assert "line 39" in drawn
    assert "line 20" not in drawn
    shown.close()
    assert "line 20" in Text.from_ansi(console.file.getvalue()).plain


def test_a_model_cannot_drive_the_terminal_nor_hide_where_a_link_leads() -> None:
    written, kept = rendered("[our bank](https://evil.example) \x1b]0;title\x07 <b>tag</b>")
    assert "https://evil.example" in kept
    assert "\x1b]" not in written
    assert "<b>tag</b>" in kept
