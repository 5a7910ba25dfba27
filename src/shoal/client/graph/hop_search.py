"""Who computes the next segments of a request: looked for, and looked for again where one is lost or busy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

from shoal.client.graph.known_graph import KnownGraph
from shoal.client.ring.hop import RouteHop
from shoal.client.ring.route_finder import RouteFinder
from shoal.errors import Busy, NoCoverage, RemoteProtocolError, ShoalError, StepFailed, UsageError
from shoal.routing.reputation import REFUSAL
from shoal.types import Numerics, PeerId, Span

FAILURES = 2
"""Peers that have to fail, one who has proven itself among them, before the request is to blame."""
AGAIN_S = 0.25
"""How long to wait before those who were busy, or gone, are asked again."""

_Found = TypeVar("_Found")


class HopSearch:
    """Looks for hops at one place of a request, and remembers who has just failed there.

    Args:
        resume_s: for how long others are looked for.
    """

    def __init__(self, finder: RouteFinder, numerics: Numerics, resume_s: float) -> None:
        self._finder = finder
        self._numerics = numerics
        self._until = trio.current_time() + resume_s
        self._avoid: set[PeerId] = set()
        self._failed: dict[PeerId, Span] = {}
        """Who could not compute which segments of the request, and is not asked for it again."""
        self._failure: StepFailed | None = None
        """What the last of them said."""
        self._last: ShoalError | None = None

    async def route(self, graph: KnownGraph, span: Span) -> list[RouteHop]:
        """A route over the segments that are left; waits a while where those who have them were lost or busy.

        Raises:
            NoCoverage, Busy, DigestMismatch: as :meth:`RouteFinder.find`, or what the last hop said.
            StepFailed: all who serve some segments were asked, and cannot compute this.
        """
        find, work = self._finder.find, graph.manifest.work
        return await self._found(
            lambda avoid: find(graph.shape, self._numerics, 1, avoid, span=span, segments=work)
        )

    async def encrypting(self, graph: KnownGraph) -> RouteHop:
        """The quickest hop that computes a whole graph on inputs that stay encrypted; waits as :meth:`route`.

        Raises:
            NoCoverage: there is none.
            StepFailed, Busy: as of :meth:`route`.
        """
        return await self._found(partial(self._encrypting, graph))

    def note(self, hop: RouteHop, error: ShoalError) -> None:
        """Learn from a hop that gave nothing.

        Raises ``error`` where no other hop would do better.
        """
        peer = hop.address.peer
        if isinstance(error, UsageError):
            raise error
        self._last = error
        if isinstance(error, StepFailed):
            self._note_failure(hop, error)
        else:
            self._avoid.add(peer)
        if isinstance(error, RemoteProtocolError):
            self._finder.reputation.failed(peer, trio.current_time())
        elif not isinstance(error, Busy | StepFailed):
            self._finder.suspect(peer)

    def blame(self, computed: Span) -> None:
        """Hold a fault against those who could not compute what somebody else just has."""
        for peer, span in self._failed.items():
            if span.end <= computed.end:  # all of a search begin at one segment
                self._finder.reputation.failed(peer, trio.current_time())

    async def _found(self, find: Callable[[set[PeerId]], _Found]) -> _Found:
        while True:
            try:
                return find(self._avoid | self._failed.keys())
            except (NoCoverage, Busy) as error:
                others = bool(self._avoid) or isinstance(error, Busy)
                if self._failure is not None and not others:  # to wait would not change the request
                    raise self._failure from None
                if self._last is None or trio.current_time() >= self._until:
                    last = self._last if isinstance(self._last, Busy) else error
                    raise self._failure or last from None
            await self._finder.wait_news(AGAIN_S)
            self._avoid.clear()

    def _encrypting(self, graph: KnownGraph, avoid: set[PeerId]) -> RouteHop:
        """Raises NoCoverage: nobody is left."""
        whole, able = Span(0, graph.shape.n_blocks), encrypting_peers(self._finder, graph)
        for hop in self._finder.offers(graph.shape, self._numerics, whole):
            if hop.address.peer in able - avoid:
                return hop
        raise NoCoverage(
            f"nobody computes {graph.name} on encrypted inputs{self._finder.among}",
            missing=[whole],
            check="start a node of all its segments, with the extra: pip install 'shoal[encrypted]'",
            next_command=f"shoal serve {graph.name}",
        )

    def _note_failure(self, hop: RouteHop, error: StepFailed) -> None:
        """Hold it against a peer that it could not compute a request, a little: the request may be to blame.

        Raises ``error`` where one of those who failed is to be believed, or others were looked for for long.
        """
        now, reputation = trio.current_time(), self._finder.reputation
        reputation.failed(hop.address.peer, now, REFUSAL)
        self._failed[hop.address.peer], self._failure = hop.span, error
        if len(self._failed) < FAILURES:
            return
        believed = any(reputation.proven(one) and not reputation.distrusted(one, now) for one in self._failed)
        if believed or now >= self._until:
            raise error


def encrypting_peers(finder: RouteFinder, graph: KnownGraph) -> set[PeerId]:
    """Who says that it computes a graph on encrypted inputs, of the peers that may be asked."""
    return {PeerId(a.peer) for a in finder.serving(graph.shape) if a.served and a.served.encrypted}
