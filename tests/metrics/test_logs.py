"""Log lines: for a person or a program, bounded, one line each, without secrets."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.metrics.logs import LINE_LIMIT, JsonLines, TextLines, about


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("shoal.node", logging.INFO, "x.py", 1, message, args, None)
    made.__dict__.update(fields)
    return made


def test_a_line_of_json_says_when_how_bad_who_and_what() -> None:
    said = json.loads(JsonLines().format(record("lost %s", "it", **about("12D3KooW", b"\xcd" * 16))))
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "level": "info",
        "logger": "shoal.node",
        "message": "lost it",
        "peer": "12D3KooW",
        "session": "cdcdcdcd",
    }


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
@pytest.mark.parametrize(
    "secret",
    ["shoal1-abcdefgh12345678", "Bearer abcdefgh12345678", "hf_abcdefgh12345678", "sk-abcdefgh12345678"],
)
def test_secrets_are_left_out(form: logging.Formatter, secret: str) -> None:
    line = form.format(record(f"with {secret} and more"))
    assert "abcdefgh" not in line
    assert "and more" in line


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_a_peers_long_text_makes_no_long_line(form: logging.Formatter) -> None:
    assert len(form.format(record("x" * 10 * LINE_LIMIT))) < 2 * LINE_LIMIT


@given(text=st.text(max_size=80))
def test_no_text_makes_a_second_line_or_drives_a_terminal(text: str) -> None:
    for line in (TextLines().format(record("%s", text)), JsonLines().format(record("%s", text))):
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line
    json.loads(JsonLines().format(record("%s", text + "\udcff")))


def test_a_traceback_is_part_of_the_one_line_of_json() -> None:
    try:
        raise ValueError("deep\ndown")
    except ValueError as error:
        failed = record("a defect")
        failed.exc_info = (type(error), error, error.__traceback__)
    line = JsonLines().format(failed)
    assert "\n" not in line
    assert "ValueError: deep" in json.loads(line)["traceback"]
    assert TextLines().format(failed).splitlines()[-1] == "down"
