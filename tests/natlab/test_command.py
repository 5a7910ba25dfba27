"""The command line of the lab, as far as it needs no lab: tests/internet runs it with nodes."""

from __future__ import annotations

import json

import pytest

from shoal.cli import main
from shoal.testing.natlab.__main__ import app


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["25", "cone,nat"], "no kind of network 'nat'"),
        (["25", "cone", "--public", "0"], "nobody to ask"),
        (["-1", "cone"], "no link"),
        (["25", "cone", "--loss", "2"], "no link"),
        (["25"], "networks"),
    ],
)
def test_a_lab_that_cannot_be_is_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # The options first: a negative delay is no option.
    assert main.run(["--json", *argv[2:], "--", *argv[:2]], app, "natlab") == 2
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]
