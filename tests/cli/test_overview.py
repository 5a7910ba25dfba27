"""What `shoal status` shows of a swarm, from announcements alone."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Console

from shoal.cli.status.overview import Overview, PeerReach, draw, overview, peers_table, status_page
from shoal.net.identity import Identity
from shoal.net.network import PeerConnection
from shoal.swarm.announcement import Announcement, Served
from shoal.swarm.names import name_of
from shoal.trust.operator import OperatorStatement
from shoal.types import Format, PeerId
from shoal.wire.messages import AGENT

DIGEST = "sha256:" + "0" * 64


def announced(
    peer: str, start: int, end: int, *, model: str = "fish", format: Format = "fp32", **more: Any
) -> Announcement:
    served = Served(model, DIGEST, 30, 64, 2048, 100, start, end, format, 1000, 900, 2, 12.5, **more)
    return Announcement(peer, 1, 100.0, 130.0, ("/ip4/10.0.0.1/tcp/1",), (), served)


def seen(*announcements: Announcement) -> Overview:
    connections = [PeerConnection(PeerId("b"), "/ip4/10.0.0.2/tcp/2", "relayed")]
    return overview(
        "home",
        PeerId("me"),
        announcements,
        connections,
        {PeerId("b"): PeerReach("relayed", 0.0123)},
        now=110.0,
    )


def shown(view: Overview) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(status_page(view))
    return captured.get()


def test_peers_come_in_the_order_of_their_blocks() -> None:
    view = seen(announced("b", 10, 30), announced("c", 0, 10))
    assert [(peer.peer, peer.start) for peer in view.peers] == [("c", 0), ("b", 10)]


def test_whose_machine_a_peer_is_stands_beside_it_where_any_says_so() -> None:
    operator = Identity.from_seed(bytes(32)).peer
    mine = OperatorStatement(operator, 0, 1000, bytes(64))
    view = seen(announced("a", 0, 10, operator=mine), announced("b", 10, 30))
    assert [peer.operator for peer in view.peers] == [operator, ""]
    assert "operator" in shown(view) and name_of(operator) in shown(view)
    assert "operator" not in shown(seen(announced("a", 0, 10)))


def test_a_covered_model_is_complete() -> None:
    (model,) = seen(announced("a", 0, 20), announced("b", 10, 30)).models
    assert (model.complete, model.missing) == (True, [])
    assert model.runs == [(0, 10, 1), (10, 20, 2), (20, 30, 1)]


def test_blocks_in_another_format_do_not_fill_a_gap() -> None:
    view = seen(announced("a", 0, 20, format="int8"), announced("b", 20, 30, format="bf16"))
    (model,) = view.models
    assert (model.format, model.complete, model.missing) == ("int8", False, ["20:30"])


def test_gaps_are_named() -> None:
    view = seen(announced("a", 5, 10), announced("b", 20, 25))
    assert view.models[0].missing == ["0:5", "10:20", "25:30"]
    assert "missing 0:5, 10:20, 25:30" in shown(view)


def test_the_way_the_round_trip_and_the_speed_of_a_peer() -> None:
    a, b = seen(announced("a", 0, 10), announced("b", 10, 30)).peers
    assert (b.way, b.rtt_ms, b.address) == ("relayed", 12.3, "/ip4/10.0.0.2/tcp/2")
    assert (a.way, a.rtt_ms, a.address) == ("", None, "/ip4/10.0.0.1/tcp/1")
    assert (a.tokens_per_s, a.sessions, a.tokens_free, a.expires_in_s) == (80.0, 2, 900, 20.0)


def out_of_reach(*lost: str) -> Overview:
    announcements = announced("a", 0, 10), announced("b", 10, 20), announced("c", 15, 30)
    reached = {PeerId(peer): PeerReach("none" if peer in lost else "punched", None) for peer in "abc"}
    return overview("home", PeerId("me"), announcements, [], reached, now=110.0)


def test_only_what_can_be_reached_from_here_is_covered() -> None:
    assert out_of_reach().models[0].complete
    (model,) = out_of_reach("b").models
    assert (model.complete, model.missing, model.out_of_reach) == (False, ["10:15"], ["10:15"])
    assert model.runs == [(0, 10, 1), (10, 15, 0), (15, 30, 1)]
    assert "missing 10:15 (out of reach from here: 10:15)" in shown(out_of_reach("b"))
    assert [peer.way for peer in out_of_reach("b").peers] == ["punched", "none", "punched"]


def test_a_model_of_which_nobody_can_be_reached_is_shown_with_nothing() -> None:
    (model,) = out_of_reach("a", "b", "c").models
    assert (model.complete, model.missing, model.out_of_reach) == (False, ["0:30"], ["0:30"])


def test_a_gap_that_nobody_serves_is_not_called_out_of_reach() -> None:
    announcements = announced("a", 0, 10), announced("b", 10, 20)
    reached = {PeerId("b"): PeerReach("none", None)}
    (model,) = overview("home", PeerId("me"), announcements, [], reached, now=110.0).models
    assert (model.missing, model.out_of_reach) == (["10:30"], ["10:20"])


def test_what_a_peer_computes_on_is_shown_if_it_says_so() -> None:
    told = {"device": "A Card", "device_memory": 24 << 30}
    view = seen(announced("a", 0, 10, **told), announced("b", 10, 30))
    assert [(peer.device, peer.device_memory) for peer in view.peers] == [("A Card", 24 << 30), ("", 0)]
    assert "A Card 24 GiB" in shown(view)


def test_a_peer_that_gives_way_to_its_owner_shows_its_share() -> None:
    view = seen(announced("a", 0, 10), announced("b", 10, 30, share=0.25), announced("c", 10, 30, share=0.0))
    assert [peer.share for peer in view.peers] == [1.0, 0.25, 0.0]
    lines = shown(view).splitlines()
    assert [word for line in lines for word in ("share", "100%", "25%", "paused") if word in line] == [
        "share",
        "100%",
        "25%",
        "paused",
    ]
    assert "share" not in shown(seen(announced("a", 0, 10)))


def test_joules_of_a_token_are_shown_where_a_peer_tells_them() -> None:
    view = seen(announced("a", 0, 10, token_joules=0.41666), announced("b", 10, 30))
    assert [peer.token_joules for peer in view.peers] == [0.41666, None]
    assert "J/token" in shown(view)
    assert " 0.417 " in shown(view)
    assert "J/token" not in shown(seen(announced("b", 10, 30)))


def test_a_peer_that_serves_nothing_is_shown_too() -> None:
    view = seen(Announcement("d", 1, 100.0, 130.0, (), (), None))
    assert "no node serves a model; start one with: shoal up" in shown(view)
    assert "d " in shown(view)


def test_a_swarm_of_nobody() -> None:
    assert "0 peers serve" in shown(seen())


def test_names_of_peers_and_models_cannot_drive_the_terminal() -> None:
    page = shown(seen(announced("a", 0, 10, model="[red]x\x1b[2J")))
    assert "\x1b" not in page
    assert "[red]x" in page


def test_a_long_model_is_drawn_in_one_line() -> None:
    assert draw([(0, 1, 0), (1, 2, 1), (2, 3, 9), (3, 4, 10)]) == ".19+"
    assert draw([(0, 126, 1), (126, 127, 0), (127, 128, 1)]) == "1" * 63 + "."
    assert draw([]) == ""


def test_the_table_has_a_line_for_each_peer() -> None:
    assert peers_table(seen(announced("a", 0, 10), announced("b", 10, 30)).peers).row_count == 2


def test_of_very_many_peers_and_models_some_are_shown_and_all_are_counted() -> None:
    others = [
        msgspec.structs.replace(
            announced(f"p{number}", 0, 1),
            served=msgspec.structs.replace(
                announced("x", 0, 1).served, digest=f"sha256:{number:064x}", n_blocks=16384, end=16384
            ),
        )
        for number in range(5000)
    ]
    view = seen(announced("a", 0, 10), announced("b", 10, 30), *others)
    assert (view.peers_in_all, view.models_in_all) == (5002, 5001 - 1)  # one has the first model's digest
    assert (len(view.peers), len(view.models)) == (256, 16)
    assert view.models[0].digest == DIGEST  # more than one peer serves it
    assert len(msgspec.json.encode(view)) < 110_000
    assert "4746 more peers are not shown" in shown(view)


def test_clocks_that_differ_are_told() -> None:
    view = overview("home", PeerId("me"), [], [], {}, now=1.0, clocks="the clock of X is wrong")
    assert "note: the clock of X is wrong" in shown(view)


def test_of_a_large_swarm_it_says_that_this_machine_knows_a_part() -> None:
    some = [announced("a", 0, 10)]
    text = shown(overview("home", PeerId("me"), some, [], {}, now=1.0, estimated=4000))
    assert "a large swarm, of about 4000 peers" in text
    assert "missing" not in text  # others may serve what those few do not
    assert "missing" in shown(overview("home", PeerId("me"), some, [], {}, now=1.0))


def test_releases_are_told_where_they_differ_and_that_this_machine_is_behind() -> None:
    def of(agent: str, *names: str) -> list[Announcement]:
        return [msgspec.structs.replace(announced(name, 0, 30), agent=agent) for name in names]

    alike = seen(*of(AGENT, "a", "b"))
    assert alike.releases == {AGENT: 2}
    assert "release" not in shown(alike)
    mixed = seen(*of("shoal/99.0", "a", "b"), *of(AGENT, "c"), *of("\x1b[2J", "d"))
    assert list(mixed.releases)[:2] == ["shoal/99.0", AGENT]
    assert f"releases: shoal/99.0 × 2, {AGENT} × 1" in shown(mixed)
    assert "\x1b[2J" not in shown(mixed)
    assert not mixed.behind  # two of four
    late = seen(*of("shoal/99.0", "a", "b"), *of(AGENT, "c"))
    assert "2 of 3 peers a newer release, such as 99.0: upgrade it" in shown(late)
    assert not seen(*of("shoal/99.0", "a")).behind  # one peer alone sends nobody to upgrade
