"""What is remembered of peers that find no place where a part of a large swarm is kept. Pure.

Their words are passed on to those who may keep them. So here, too, nobody speaks without end, and no word is
heard again when a later one was.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from shoal.swarm.announcement import MAX_LIFETIME_S
from shoal.swarm.anti_entropy import MAX_PEERS
from shoal.types import PeerId

WORDS_AT_ONCE = 4
"""Words of one peer, beside the first, that are taken however fast they come; then one in a while."""


def words_left(words: float, after_s: float, every_s: float) -> float:
    """Words that a peer may say at once ``after_s`` after it could say ``words``: one more each ``every_s``.

    As many as anybody, where that is 0.
    """
    return min(WORDS_AT_ONCE, words + after_s / every_s) if every_s else float(WORDS_AT_ONCE)


@dataclass(frozen=True, slots=True)
class LastWord:
    """The newest word of a peer."""

    sequence: int
    since: float
    words: float
    """That the peer may say at once, as of ``since``."""


class Placeless:
    """The newest words of those peers, by a clock that only runs forwards."""

    def __init__(self, limit: int = MAX_PEERS) -> None:
        self._limit = limit
        self._last: OrderedDict[PeerId, LastWord] = OrderedDict()
        """In the order in which they lost their places."""

    def __len__(self) -> int:
        return len(self._last)

    def note(self, peer: PeerId, last: LastWord) -> None:
        """A peer has no place, or not any more."""
        self._last[peer] = last
        self._last.move_to_end(peer)
        if len(self._last) > self._limit:
            self._last.popitem(last=False)

    def forget(self, peer: PeerId) -> None:
        """It has a place."""
        self._last.pop(peer, None)

    def expire(self, now: float) -> None:
        """Forget those whose words are over, and could not be played again."""
        while self._last and next(iter(self._last.values())).since + MAX_LIFETIME_S <= now:
            self._last.popitem(last=False)

    def sequence(self, peer: PeerId) -> int:
        """The newest sequence number heard from a peer, -1 if none is remembered."""
        last = self._last.get(peer)
        return last.sequence if last else -1

    def may_speak(self, peer: PeerId, sequence: int, now: float, every_s: float) -> bool:
        """Whether a word is listened to. The same again is: by now its peer may find a place."""
        last = self._last.get(peer)
        return (
            last is None
            or last.sequence == sequence
            or words_left(last.words, now - last.since, every_s) >= 1
        )

    def words_after(self, peer: PeerId, sequence: int, now: float, every_s: float) -> float:
        """Words that a peer may say at once after this one."""
        last = self._last.get(peer)
        if last is None:
            return float(WORDS_AT_ONCE)
        return words_left(last.words, now - last.since, every_s) - (last.sequence != sequence)
