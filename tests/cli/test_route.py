"""`shoal route`: the route that a session would take, and why, for a reader and for a program."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal import config
from shoal.cli.output import printable
from shoal.cli.status.route import choice_view, covering, fields_of, line
from shoal.errors import NoCoverage
from shoal.routing.explain import Choice, explain_route
from shoal.swarm.announcement import Announcement, Served
from shoal.types import PeerId, Span, Way
from tests.routing.test_explain import OFFERS

WAYS: dict[PeerId, Way] = {OFFERS[0].peer: "punched"}


@pytest.fixture
def choice() -> Choice:
    return explain_route(OFFERS, 30, 1)


def text(choice: Choice) -> str:
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as captured:
        console.print(choice_view(choice, WAYS))
    return captured.get()


def test_a_reader_sees_every_hop_and_what_there_is_without_it(choice):
    page = text(choice)
    assert "best for latency: 2 hops" in page
    for words in (
        "Saury-a",
        "0:15",
        "15.00 ms",
        "without",
        "served by nobody",
        "Saury-a 0:15 → Brill-c 15:30",
    ):
        assert words in page


def test_what_was_not_measured_is_marked():
    assert "~" in text(explain_route([OFFERS[0], OFFERS[2]], 30, 1))


def test_without_why_it_is_one_line(choice):
    assert line(choice, {}) == "Saury-a 0:15 → Whiting-b 15:30"
    assert line(choice, WAYS) == "Saury-a 0:15 (punched) → Whiting-b 15:30"


def test_a_program_gets_all_of_it(choice):
    fields = fields_of("tiny", choice, WAYS)
    assert [stage["span"] for stage in fields["stages"]] == ["0:15", "15:30"]
    assert [stage["way"] for stage in fields["stages"]] == ["punched", ""]
    stages = sum(s["way_ms"] + s["waiting_ms"] + s["computing_ms"] for s in fields["stages"])
    assert fields["step_ms"] == pytest.approx(stages + fields["back_ms"], abs=0.01)
    assert fields["without"][0]["step_ms"] is None
    assert printable(fields["without"][0]["why_none"])


def test_blocks_that_the_client_keeps_are_no_part_of_the_route_and_are_told() -> None:
    choice = explain_route(OFFERS, 30, 1, span=Span(2, 28))
    assert line(choice, {}) == "here 0:2 → Saury-a 2:15 → Whiting-b 15:28 → here 28:30"
    assert fields_of("tiny", choice, {})["own"] == ["0:2", "28:30"]
    assert "blocks 0:2 and 28:30, which run here" in text(choice)


def announced(peer: str, start: int, end: int, format: str, digest: str = "a") -> Announcement:
    sizes = (30, 64, 128, 100, start, end)
    numerics = f"n1/{format}/auto/modules"
    served = Served("tiny", "sha256:" + digest * 64, *sizes, format, 1, 1, 0, 0.0, numerics=numerics)
    return Announcement(peer, 1, 0.0, 30.0, (), (), served)


def test_formats_and_versions_never_mix(tmp_path):
    settings = config.load({}, {"SHOAL_HOME": str(tmp_path)})
    alive = [
        announced("a", 0, 15, "fp32"),
        announced("b", 0, 30, "bf16"),
        announced("c", 15, 30, "fp32", digest="b"),
    ]
    assert [a.peer for a, _ in covering(alive, "tiny", settings)] == ["b"]
    with pytest.raises(NoCoverage, match="nobody serves other"):
        covering(alive, "other", settings)


def test_of_the_peers_that_may_be_asked_alone_a_route_is_chosen(tmp_path: Path) -> None:
    alive = [announced("a", 0, 30, "fp32"), announced("b", 0, 15, "bf16"), announced("c", 15, 30, "bf16")]
    for only, peers in (((), ["b", "c"]), (("a", "c"), ["a"]), (("b",), ["b"])):
        settings = config.load({"only": only}, {"SHOAL_HOME": str(tmp_path)})
        assert [a.peer for a, _ in covering(alive, "tiny", settings)] == peers
    settings = config.load({"only": "d"}, {"SHOAL_HOME": str(tmp_path)})
    with pytest.raises(NoCoverage, match="nobody of those in only serves tiny"):
        covering(alive, "tiny", settings)


def test_the_format_is_that_of_the_blocks_that_others_are_to_run(tmp_path: Path) -> None:
    alive = [announced("a", 2, 28, "fp32"), announced("b", 0, 20, "bf16"), announced("c", 0, 20, "bf16")]
    for ends, peers in (("0:0", ["b", "c"]), ("2:2", ["a"])):
        settings = config.load({"private_ends": ends}, {"SHOAL_HOME": str(tmp_path)})
        assert [a.peer for a, _ in covering(alive, "tiny", settings)] == peers
