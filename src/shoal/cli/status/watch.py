"""`shoal status --watch`: the swarm as it changes, for as long as one looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from shoal.cli.output import emit
from shoal.cli.status import observe
from shoal.cli.status.overview import Overview, PeerReach, status_page

if TYPE_CHECKING:
    from shoal.cli.enter import Onlooker
    from shoal.types import PeerId

EVERY_S = 1.0
"""Seconds between two looks when nothing is heard: peers expire without a word."""
LEAST_S = 0.25
"""Seconds between two looks at least: a big swarm has something to say all the time."""
MEASURE_EVERY_S = 5.0
"""Seconds between two rounds of pings."""

Show = Callable[[Overview], None]


async def watch(swarm: Onlooker, show: Show) -> None:
    """Give ``show`` the swarm as it is known, again and again, until cancelled. A swarm may be empty."""
    reached: dict[PeerId, PeerReach] = {}

    async def measure() -> None:
        while True:
            asked = swarm.announcements()
            found = await observe.reach_all(swarm, asked)
            reached.clear()
            reached.update(found)
            known = {announcement.peer for announcement in asked}
            with trio.move_on_after(MEASURE_EVERY_S):
                while known.issuperset(announcement.peer for announcement in swarm.announcements()):
                    await swarm.member.wait_changed()
            await trio.sleep(LEAST_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure)
        while True:
            show(observe.seen(swarm, reached))
            with trio.move_on_after(EVERY_S):
                await swarm.member.wait_changed()
            await trio.sleep(LEAST_S)


@contextmanager
def live_view(as_json: bool) -> Generator[Show]:
    """How each view is shown: drawn over the last on a terminal, else on new lines when it says more."""
    if not as_json and sys.stdout.isatty():
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            yield lambda view: live.update(status_page(view), refresh=True)
        return
    yield Changes(as_json).show


class Changes:
    """Prints a view when it differs from the last in more than what runs by itself."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._last: Overview | None = None

    def show(self, view: Overview) -> None:
        """Print it, if there is anything new in it."""
        still = without_clocks(view)
        if still == self._last:
            return
        self._last = still
        emit(view, self._as_json, lambda: status_page(view))
        sys.stdout.flush()


def without_clocks(view: Overview) -> Overview:
    """The view without what changes all the time: round trips, and how long a word still counts."""
    return replace(view, peers=[replace(peer, rtt_ms=None, expires_in_s=0.0) for peer in view.peers])
