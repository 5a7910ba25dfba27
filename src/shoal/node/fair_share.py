"""Who has how much of a node when more is wanted than there is. Pure: time is an argument.

A session holds the KV that its steps have needed so far, and nothing for those that may come: to ask for a
session costs nobody anything. Anyone may have all there is while nobody else wants it. When it is too little,
sessions end to make room (push-out, the longest queue first: Choudhury and Hahne, 1998), and whoever holds
most loses first: counted by network (a /24 or /56), in a network by host, at a host by identity. Identities
cost nothing, so many of one host are one.

- First go sessions that are quiet, the largest of them first: for whoever then has an equal share at the
  most, or no more than they hold. So a conversation that pauses does not lose its KV to a host that has more.
  One that has paused for minutes goes for whoever then has half of the node at the most.
- A session at work goes only to let in whoever then has little, half of an equal share at the most, and only
  where most is held. So nobody who works like everybody else is thrown out, and a newcomer always gets in.

A session that was ended so is told that the node is busy, and its client fills another cache elsewhere, or
here when there is room again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from shoal.errors import Busy
from shoal.net.handshake_backlog import network_of
from shoal.types import PeerId, SessionId

QUIET_S = 3.0
"""A session without a step for so long may be ended where its room is wanted."""
PATIENCE_S = 15.0
"""The same for one whose steps come slowly, such as pieces of a long prompt from a slow hop before us."""
PAUSED_S = 120.0
"""A session without a step for so long gives way to more than others."""
UNUSED_S = 1.0
"""The same for one that has never had a step: whoever opens a session has its first step ready."""
LEAST_TOKENS = 256
"""Of KV, to which everybody may push others out. A small node gives less, a sixteenth of what it has."""
RETRY_S = 1.0
"""When to come back to a node that is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionShare:
    """A session as far as room is concerned."""

    session: SessionId
    peer: PeerId
    """Its client."""
    host: str
    """Where the client's channel comes from; empty where that is not known."""
    tokens: int = 0
    """Of KV, that it holds."""
    limit: int = 0
    """Tokens that it may grow to."""
    stepped: bool = False
    """Whether it has ever had a step."""
    computing: bool = False
    """Whether one is here now."""
    since: float = 0.0
    """When its last step came; before the first, when it was asked for."""
    pause_s: float = 0.0
    """How long its last step was awaited."""

    def paused(self, now: float) -> bool:
        """Whether nobody has used it for long."""
        return not self.computing and now - self.since > PAUSED_S

    def quiet(self, now: float) -> bool:
        """Whether nobody seems to be using it."""
        patience_s = max(QUIET_S, min(2 * self.pause_s, PATIENCE_S)) if self.stepped else UNUSED_S
        return not self.computing and now - self.since > patience_s


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants room: a client, for a new session or for one that has grown."""

    peer: PeerId
    host: str
    session: SessionId | None = None


def make_room(
    held: Sequence[SessionShare], asker: Asker, tokens: int, *, total: int, now: float
) -> list[SessionId]:
    """Whose sessions are to end, so that ``tokens`` tokens of KV are free of ``total``.

    Raises:
        Busy: nobody's, for this asker.
    """
    stake = _Stake(tokens, total, min(LEAST_TOKENS, total // 16), weigh=_tokens, first=lambda h: -h.tokens)
    ended = _push_out(held, asker, stake, now)
    if ended is None:
        taken = min(total, sum(h.tokens for h in held))
        raise Busy(
            f"no room for {tokens} tokens of KV: {taken} of {total} are in use",
            tokens_free=offered(held, total=total, now=now),
            check="end a session, or wait and try again",
            retry_after_s=RETRY_S,
        )
    return ended


def make_place(held: Sequence[SessionShare], asker: Asker, *, places: int, now: float) -> list[SessionId]:
    """Whose sessions are to end, so that one more fits into ``places``; of several, who loses least by it.

    Raises:
        Busy: nobody's, for this asker.
    """
    ended = _push_out(held, asker, _Stake(1, places, 1, weigh=lambda _: 1, first=_tokens), now)
    if ended is None:
        raise Busy(
            f"all {places} sessions are taken",
            check="end a session, or wait and try again",
            retry_after_s=RETRY_S,
        )
    return ended


def check_fits(held: Sequence[SessionShare], asker: Asker, tokens: int, *, total: int, now: float) -> None:
    """Refuse a session that would find no room for its ``tokens`` tokens if the others go on as they do.

    A session at work is expected to double, within its limit. One that is not used is expected to do nothing.

    Raises:
        Busy: says how much would be let have.
    """
    make_room([replace(h, tokens=_expected(h, now)) for h in held], asker, tokens, total=total, now=now)


def offered(held: Sequence[SessionShare], *, total: int, now: float) -> int:
    """Tokens of KV that a newcomer would be let have."""
    theirs, quiet = Counter[str](), Counter[str]()
    for h in held:
        network, tokens = network_of(h.host), _expected(h, now)
        theirs[network] += tokens
        quiet[network] += tokens if h.quiet(now) else 0
    free, equal = total - theirs.total(), total // (len(theirs) + 1)
    paused = sum(_expected(h, now) for h in held if h.paused(now))
    found = [free, min(free + quiet.total(), equal), min(free + paused, total // 2), equal // 2]
    for least in theirs.values():
        given = sum(quiet[network] for network, tokens in theirs.items() if tokens >= least)
        found.append(min(free + given, least))
    return max(found)


def _expected(held: SessionShare, now: float) -> int:
    return held.tokens if held.quiet(now) else max(held.tokens, min(held.limit, 2 * held.tokens))


def _tokens(held: SessionShare) -> int:
    return held.tokens


@dataclass(frozen=True, slots=True)
class _Stake:
    """What there is too little of, and how much of it is wanted."""

    wanted: int
    total: int
    least: int
    """What everybody may push others out for."""
    weigh: Callable[[SessionShare], int] = field(kw_only=True)
    """How much of it a session has."""
    first: Callable[[SessionShare], int] = field(kw_only=True)
    """Of sessions that may go, the one with the least of this goes first."""


def _push_out(
    held: Sequence[SessionShare], asker: Asker, stake: _Stake, now: float
) -> list[SessionId] | None:
    """Sessions to end until there is enough; ``None`` where the asker may not end so many."""
    left = list(held)
    free = stake.total - sum(map(stake.weigh, held))
    crowd = _Crowd(held, asker, stake)
    quiet = [h for h in held if h.session != asker.session and h.quiet(now) and crowd.gives_way(h, now)]
    # Taken from the end: never used before used, then as the stake says, then idle for longest.
    quiet.sort(key=lambda h: (h.stepped, stake.first(h), h.since), reverse=True)
    while free < stake.wanted:
        victim = quiet.pop() if quiet else _at_work(left, asker, stake)
        if victim is None:
            return None
        left.remove(victim)
        free += stake.weigh(victim)
    return [h.session for h in held if h not in left]


def _at_work(held: Sequence[SessionShare], asker: Asker, stake: _Stake) -> SessionShare | None:
    crowd = _Crowd(held, asker, stake)
    may_go = [h for h in held if h.session != asker.session and crowd.lets_in(h)]
    return max(may_go, key=lambda h: (crowd.most(h), -stake.first(h), -h.since), default=None)


Group = tuple[str, ...]
"""A network, a host in it, an identity there."""


class _Crowd:
    """How much each group has, and how that of the asker compares."""

    def __init__(self, held: Sequence[SessionShare], asker: Asker, stake: _Stake) -> None:
        self._stake = stake
        self._place: Group = (network_of(asker.host), asker.host, asker.peer)
        self._places: dict[SessionId, Group] = {h.session: (network_of(h.host), h.host, h.peer) for h in held}
        self._weights: Counter[Group] = Counter()
        for h in held:
            place = self._places[h.session]
            for level in range(1, len(place) + 1):
                self._weights[place[:level]] += stake.weigh(h)

    def gives_way(self, held: SessionShare, now: float) -> bool:
        """Whether a session, if it is quiet, may be ended for the asker. Its own always may."""
        level = self._apart(held)
        if level is None:
            return True
        theirs, _, after, equal = self._compared(held, level)
        half = self._stake.total // 2 if held.paused(now) else 0
        return after <= max(theirs, equal, half)

    def lets_in(self, held: SessionShare) -> bool:
        """Whether a session at work may be ended for the asker, who has little."""
        level = self._apart(held)
        if level is None:
            return False
        theirs, before, after, equal = self._compared(held, level)
        return after <= self._stake.least or (2 * after <= equal and theirs > before)

    def most(self, held: SessionShare) -> tuple[int, ...]:
        """How much its network has, its host, its identity."""
        place = self._places[held.session]
        return tuple(self._weights[place[:level]] for level in range(1, len(place) + 1))

    def _apart(self, held: SessionShare) -> int | None:
        """How long the groups are at which it and the asker part; ``None`` for the asker's own."""
        place = self._places[held.session]
        return next((n + 1 for n in range(len(place)) if place[n] != self._place[n]), None)

    def _compared(self, held: SessionShare, level: int) -> tuple[int, int, int, int]:
        """What its group has; what the asker's has, before and after; and what an equal share would be."""
        ours, theirs = self._place[:level], self._places[held.session][:level]
        beside = {place[:level] for place in self._places.values() if place[: level - 1] == ours[:-1]}
        before = self._weights[ours]
        equal = self._stake.total // len(beside | {ours})
        return self._weights[theirs], before, before + self._stake.wanted, equal
