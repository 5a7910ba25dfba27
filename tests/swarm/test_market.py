"""What a swarm offers: protection by how many have each block, speed by the fastest, lies by our audits."""

from __future__ import annotations

import csv
import io
from typing import Any

from rich.console import Console

from shoal.cli.status.market import market_page
from shoal.swarm.announcement import Announcement, AskedPrice, Served
from shoal.swarm.market import CSV_COLUMNS, Market, as_csv, market
from shoal.types import PeerId

EXACT = "n1/int8/auto/rows"
DIGEST = "sha256:" + "0" * 64


def node(peer: str, start: int = 0, end: int = 30, model: str = "fish", **more: Any) -> Announcement:
    given = {"step_ms": 10.0, "numerics": EXACT} | more
    served = Served(model, DIGEST, 30, 64, 2048, 100, start, end, "int8", 1000, 900, 2, **given)
    return Announcement(peer, 1, 100.0, 130.0, ("/ip4/10.0.0.1/tcp/1",), (), served)


def offered(*nodes: Announcement, found_out: tuple[str, ...] = ()) -> Market:
    return market("home", nodes, frozenset(map(PeerId, found_out)))


def protection(*nodes: Announcement, **more: Any) -> tuple[str, ...]:
    (model,) = offered(*nodes, **more).models
    return model.protection


def test_protection_depends_on_how_many_have_the_block_that_the_fewest_have() -> None:
    half = (node("a", 0, 15), node("b", 15, 30))
    assert protection(half[0]) == ()
    assert protection(*half) == ("fast",)
    assert protection(*half, node("c")) == ("fast", "audited")
    assert protection(*half, node("c"), node("d")) == ("fast", "audited", "consensus")


def test_only_exact_numerics_can_be_computed_again_and_only_hardware_shows_itself() -> None:
    loose = [node(peer, numerics="n1/bf16/auto/batch") for peer in "abc"]
    assert protection(*loose) == ("fast",)
    assert protection(node("a", attests="tdx")) == ("fast", "attested")
    assert protection(node("a", 0, 15, attests="tdx"), node("b", 15, 30)) == ("fast",)


def test_the_speed_is_that_of_the_fastest_node_of_each_block() -> None:
    (model,) = offered(node("a", step_ms=30.0), node("b", 0, 15, step_ms=5.0)).models
    assert model.tokens_per_s == 50.0
    (unknown,) = offered(node("a", 0, 15, step_ms=0.0), node("b", 15, 30)).models
    assert (unknown.complete, unknown.tokens_per_s) == (True, None)


def test_who_was_found_out_is_listed_and_counts_for_nothing() -> None:
    found = offered(node("a"), node("b"), found_out=("b",))
    assert [(span.peer, span.found_out) for span in found.spans] == [("a", False), ("b", True)]
    assert found.models[0].protection == ("fast",)
    assert offered(node("b"), found_out=("b",)).models == []


def test_a_table_for_spreadsheets_computes_nothing_that_strangers_wrote() -> None:
    found = offered(node("a", model="=HYPERLINK(1)", device='big, "fast"'))
    header, line = csv.reader(io.StringIO(as_csv(found)))
    assert tuple(header) == CSV_COLUMNS
    row = dict(zip(header, line, strict=True))
    assert (row["model"], row["device"], row["found_out"]) == ("'=HYPERLINK(1)", 'big, "fast"', "False")


def test_what_a_node_asks_is_shown_in_coins_to_programs_and_to_people() -> None:
    price = AskedPrice(2 * 10**15, 10**15, b"p" * 20, 31337, b"c" * 20)
    found = offered(node("a", price=price), node("b"))
    assert [span.price for span in found.spans] == ["0.002", ""]
    assert [line.rpartition(",")[2] for line in as_csv(found).splitlines()] == ["price", "0.002", ""]
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(market_page(found))
    assert "0.002" in captured.get()


def test_people_see_models_and_peers_and_that_there_is_more() -> None:
    many = [node(f"p{number:03}") for number in range(300)]
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(market_page(offered(*many)))
    shown = captured.get()
    assert "fast, audited, consensus" in shown
    assert "44 more peers are not listed" in shown
    with console.capture() as captured:
        console.print(market_page(offered(node("a", 0, 5))))
    assert "incomplete" in captured.get()
