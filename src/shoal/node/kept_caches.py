"""KV that sessions have left here by name, for whoever goes on from the same tokens
(:mod:`shoal.wire.cache_names`).

It is in nobody's way: whoever needs its room has it at once, so it counts as free. Bounded in number and
time; of many, the oldest of the client that has left most goes first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from shoal.executor.engine import Engine
from shoal.executor.runner import KvState
from shoal.types import Codec, PeerId
from shoal.wire.cache_names import CacheName
from shoal.wire.messages import Open

MAX_CACHES = 64
SHARED_PART = 2
"""A cache is taken where at least one part of so many is the new session's too: a long conversation does not
lose its KV to each that begins with the same instructions."""
CACHE_S = 600.0
"""How long one is kept at the most."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptCache:
    """What a session has left."""

    engine: Engine
    state: KvState
    opened: Open
    """As the session was."""
    client: PeerId
    names: tuple[CacheName, ...]
    codec: Codec
    """In which its rows came."""
    held: int
    """Tokens of KV that are reserved for it."""
    since: float


@dataclass(frozen=True, slots=True)
class FoundCache:
    """Of a kept cache, as much as another session begins with."""

    cache: KeptCache
    tokens: int


class KeptCaches:
    """All that is kept at a node."""

    def __init__(self) -> None:
        self._caches: list[KeptCache] = []

    def __len__(self) -> int:
        return len(self._caches)

    def held(self, engine: Engine) -> int:
        """Tokens of KV that an engine has reserved for what is kept."""
        return sum(kept.held for kept in self._caches if kept.engine is engine)

    def add(self, cache: KeptCache) -> None:
        """Keep one more."""
        self.expire(cache.since)
        self._caches.append(cache)
        if len(self._caches) > MAX_CACHES:
            count = Counter(kept.client for kept in self._caches)
            self._give_up(max(self._caches, key=lambda kept: (count[kept.client], -kept.since)))

    def take(self, found: FoundCache) -> None:
        """It is another session's now, and no longer kept."""
        self._caches.remove(found.cache)

    def find(self, engine: Engine, opened: Open, now: float) -> FoundCache | None:
        """What holds most of the beginning of a session that is to be opened."""
        self.expire(now)
        ours = [kept for kept in self._caches if kept.engine is engine]
        found = [
            (most, kept)
            for kept in ours
            if (most := shared_tokens(kept.names, kept.opened, opened))
            and most <= kept.state.length <= SHARED_PART * most
        ]
        if not found:
            return None
        tokens, best = max(found, key=lambda each: (each[0], each[1].since))
        return FoundCache(best, tokens)

    def make_room(self, engine: Engine, tokens: int) -> None:
        """Give up the oldest until so many tokens of KV are free, or nothing more is kept."""
        while tokens > engine.tokens_free:
            cache = next((kept for kept in self._caches if kept.engine is engine), None)
            if cache is None:
                return
            self._give_up(cache)

    def clear(self, engine: Engine) -> None:
        """The engine is to be closed."""
        for cache in [kept for kept in self._caches if kept.engine is engine]:
            self._give_up(cache)

    def expire(self, now: float) -> None:
        """Give up what has been kept for long."""
        for cache in [kept for kept in self._caches if now - kept.since > CACHE_S]:
            self._give_up(cache)

    def _give_up(self, cache: KeptCache) -> None:
        self._caches.remove(cache)
        cache.engine.give_up(cache.state)


def shared_tokens(names: tuple[CacheName, ...], kept: Open, opened: Open) -> int:
    """How many tokens a session may begin with of another one's; 0 where it may not at all."""
    if _kind(kept) != _kind(opened):
        return 0
    asked = {each.name: each.tokens for each in opened.caches}
    return max((n.tokens for n in names if asked.get(n.name) == n.tokens <= opened.tokens), default=0)


def _kind(opened: Open) -> tuple[object, ...]:
    """What two sessions have in common of which one may have the other's KV."""
    return opened.digest, opened.format, opened.numerics, opened.adapter, opened.start, opened.end


def fitting(names: tuple[CacheName, ...], length: int) -> tuple[CacheName, ...]:
    """Those of a session's names that its cache of so many tokens can have."""
    return tuple(name for name in names if name.tokens <= length)
