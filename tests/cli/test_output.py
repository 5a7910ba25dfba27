"""What is printed where: JSON in one line, text without control characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from shoal.cli.output import check_output, emit, printable, to_json, wants_json
from shoal.errors import UsageError
from tests.cli.conftest import Shoal


def test_json_is_one_line_and_knows_paths(tmp_path: Path) -> None:
    assert to_json({"path": tmp_path, "text": "a\nb", "n": (1, None)}) == (
        f'{{"path":"{tmp_path}","text":"a\\nb","n":[1,null]}}'
    )


def test_a_table_in_a_pipe_is_neither_cut_nor_filled_up(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("peer")
    table.add_column("path")
    table.add_row("x" * 120, "y")
    emit({}, False, lambda: table)
    assert capsys.readouterr().out.splitlines() == [f"peer{' ' * 118}path", f"{'x' * 120}  y"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a.txt", r"must end in \.npz or \.npy"),
        ("nowhere/a.npy", "there is no folder .*nowhere"),
        ("folder.npy", "it is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(UsageError, match=why):
        check_output(tmp_path / name, ".npz", ".npy")
    check_output(tmp_path / "a.npy", ".npz", ".npy")
    check_output(tmp_path / "a.txt")
    check_output(None, ".npy")


@pytest.mark.parametrize(
    "argv",
    [
        ("run", "m", "Hi", "--receipts", "nowhere/a.json"),
        ("embed", "m", "Hi", "--output", "nowhere/a.npy"),
        ("infer", "g", "--input", "x=x.npy", "--output", "nowhere/a.npz"),
        ("bench", "device", "--save", "nowhere/a.json"),
        ("bench", "device", "--report", "nowhere/a.html"),
    ],
)
def test_commands_refuse_it_before_anything_is_asked(
    argv: tuple[str, ...], shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = shoal(*argv)
    assert ran.code == UsageError.exit_code
    assert "there is no folder" in ran.err


def test_plain_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    emit({}, False, lambda: "[bold]" + "x" * 500)
    assert capsys.readouterr().out == "[bold]" + "x" * 500 + "\n"


@given(st.text())
def test_nothing_printable_can_drive_a_terminal(text: str) -> None:
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 for c in printable(text))


def test_letters_of_every_language_stay() -> None:
    assert printable("naïve 魚 🐟\n\tok") == "naïve 魚 🐟\n\tok"


@pytest.mark.parametrize(
    ("argv", "asked"),
    [(["run", "m", "--json"], True), (["run", "m", "--", "--json"], False), (["run", "m", "json"], False)],
)
def test_json_is_asked_for_by_the_option_alone(argv: list[str], asked: bool) -> None:
    assert wants_json(argv) is asked
