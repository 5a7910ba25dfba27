"""The error tree: drawn as it is, with codes that cross the wire and exit codes that scripts rely on."""

from __future__ import annotations

import inspect
import re

import pytest

from shoal import errors
from shoal.errors import Busy, ChannelClosed, NoCoverage, RemoteProtocolError, ShoalError, from_code
from shoal.types import Span

KINDS = [k for k in vars(errors).values() if inspect.isclass(k) and issubclass(k, ShoalError)]


def test_the_drawing_names_every_error_under_its_parent() -> None:
    parents: list[str] = []
    drawn: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([│ ]*)(?:[├└]── )?([A-Z]\w+)(?:  |$)", line)
        if found and (line.startswith("ShoalError") or "── " in line):
            depth = 0 if line.startswith("ShoalError") else line.index("── ") // 4 + 1
            parents[depth:] = [found[2]]
            drawn[found[2]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in KINDS}


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_an_error_comes_back_from_its_code(kind: type[ShoalError]) -> None:
    again = from_code(kind.code, "what is wrong")
    assert type(again) is kind
    assert again.message == str(again) == "what is wrong"


def test_a_code_of_a_later_version_is_still_an_error() -> None:
    assert type(from_code("from_the_future", "?")) is ShoalError


def test_a_peer_cannot_name_an_error_that_another_part_derived() -> None:
    class Derived(ChannelClosed):
        def __init__(self, peer: str, message: str) -> None:
            super().__init__(message)

    class Renamed(Derived):
        code = "renamed"

    assert type(from_code("channel_closed", "?")) is ChannelClosed
    assert type(from_code("renamed", "?")) is ShoalError


def test_busy_says_when_to_come_back_and_how_much_there_is() -> None:
    error = from_code("busy", "full", retry_after_s=2.5, tokens_free=7)
    assert isinstance(error, Busy)
    assert (error.retry_after_s, error.tokens_free) == (2.5, 7)


def test_no_coverage_names_the_missing_blocks() -> None:
    assert NoCoverage("?", missing=[Span(0, 10)]).missing == (Span(0, 10),)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("failure", 1),
        ("usage", 2),
        ("not_running", 3),
        ("no_coverage", 4),
        ("not_allowed", 5),
        ("bad_invite", 5),
        ("out_of_resources", 6),
        ("busy", 6),
        ("port_in_use", 6),
        ("unknown_model", 1),
        (RemoteProtocolError.code, 1),
    ],
)
def test_exit_codes_do_not_change(code: str, exit_code: int) -> None:
    assert from_code(code, "?").exit_code == exit_code
