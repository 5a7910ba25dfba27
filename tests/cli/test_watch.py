"""`shoal status --watch`: the swarm as it changes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from shoal.cli.enter import Onlooker
from shoal.cli.status import watch as watch_module
from shoal.cli.status.observe import Pinged
from shoal.cli.status.overview import Overview
from shoal.cli.status.watch import Changes, watch, without_clocks
from shoal.net.network import ReachView
from shoal.swarm.announcement import Announcement
from shoal.swarm.clock import Clock
from shoal.swarm.directory import Directory
from shoal.types import PeerId
from tests.cli.test_overview import announced, seen


class World:
    """What an onlooker sees, and can be told."""

    def __init__(self) -> None:
        self.alive: list[Announcement] = []
        self.pinged: list[str] = []
        self.changed = trio.Event()
        clock = Clock(wall=lambda: 110.0)
        size = SimpleNamespace(partial=False)
        member = SimpleNamespace(
            alive=lambda: self.alive, wait_changed=self.wait, clock=clock, directory=Directory(), size=size
        )
        reach = ReachView("cone", False, "", ())
        network = SimpleNamespace(peer=PeerId("me"), connections=list, reach=lambda: reach)
        settings = SimpleNamespace(swarm="home")
        self.onlooker = Onlooker(cast("Any", settings), cast("Any", network), cast("Any", member))

    def say(self, *alive: Announcement) -> None:
        self.alive = list(alive)
        self.changed.set()
        self.changed = trio.Event()

    async def wait(self) -> None:
        await self.changed.wait()

    async def ping_one(self, network: object, announcement: Announcement) -> Pinged:
        self.pinged.append(announcement.peer)
        return Pinged(announcement.peer, "", "direct", "lan", 2.0)


async def test_peers_come_are_measured_and_go(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, views = World(), list[Overview]()
    monkeypatch.setattr(watch_module.observe, "ping_one", world.ping_one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, world.onlooker, views.append)
        await trio.sleep(3)
        assert views[-1].peers == []
        world.say(announced("a", 0, 10), announced("b", 10, 30))
        await trio.sleep(3)
        assert [(p.peer, p.way, p.rtt_ms) for p in views[-1].peers] == [("a", "lan", 2.0), ("b", "lan", 2.0)]
        assert views[-1].models[0].complete
        world.alive = [announced("a", 0, 10)]  # b expired, without a word
        await trio.sleep(2)
        assert views[-1].models[0].missing == ["10:30"]
        nursery.cancel_scope.cancel()


async def test_a_peer_that_does_not_answer_is_not_asked_all_the_time(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()

    async def silent(onlooker: Onlooker, alive: object) -> dict[PeerId, float]:
        world.pinged.append("asked")
        return {}

    monkeypatch.setattr(watch_module.observe, "reach_all", silent)
    world.alive = [announced("a", 0, 10)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, world.onlooker, lambda view: None)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert (
        60 / (watch_module.MEASURE_EVERY_S + 1) < len(world.pinged) <= 1 + 60 / watch_module.MEASURE_EVERY_S
    )


def test_a_pipe_gets_one_object_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    changes = Changes(as_json=True)
    first = seen(announced("a", 0, 10))
    later = replace(first, peers=[replace(first.peers[0], expires_in_s=1.0, rtt_ms=9.0)])
    more = replace(first, peers=[replace(first.peers[0], sessions=7)])
    for view in (first, first, later, more):
        changes.show(view)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert '"sessions":7' in lines[1]


def test_what_runs_by_itself_is_no_change() -> None:
    view = seen(announced("a", 0, 10))
    assert without_clocks(view) != view
    assert without_clocks(without_clocks(view)) == without_clocks(view)


def test_a_pipe_without_json_gets_pages(capsys: pytest.CaptureFixture[str]) -> None:
    with watch_module.live_view(as_json=False) as show:
        show(seen(announced("a", 0, 10)))
        show(seen(announced("a", 0, 30)))
    out = capsys.readouterr().out
    assert out.index("missing 10:30") < out.index("complete")
