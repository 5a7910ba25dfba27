"""What a client has seen of its peers, and what that makes of their own words. Pure.

An announcement costs nothing, so the word of a peer that has not answered yet counts little: it is a
candidate that seems dear, and no faster than those who have proven what they say. A share of the sessions
takes newcomers at their word; with each step that comes back a peer is trusted more. What went wrong is held
against it and forgiven with time. Of two who blame each other, the one who is trusted less goes, or both.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from shoal.routing.prices import Candidate, worth_of
from shoal.types import PeerId

GOOD, BAD = 1, 3
"""What a newcomer is taken to have done well and badly: it is trusted as one who fails in three of four."""
FAULT = 64.0
"""Steps that a fault weighs: to stall, to fail a step, to be at odds with a neighbour."""
WHOLE_FAULT = 1.0
SHARED_FAULT = 0.5
"""The share of a fault of each of two that are equally to blame."""
INVOLVED = 0.1
"""The same for one that contradicts a peer who is trusted less."""
REFUSAL = 0.25
"""The same for a refused session, for one that was not opened in time, and for being gone."""
HALF_LIFE_S = 120.0
"""Of what is held against a peer, half is forgiven in this time."""
MOST_ANSWERS = 256
"""Steps that count in a peer's favour: whoever was good for long can still lose its name in a minute."""
PROVEN = 8
"""Steps after which what was seen of a peer's speed outweighs what others announce."""
TRIALS = 1 / 8
"""Share of the sessions that take newcomers at their word."""
ALIKE = 2.0
"""Peers of which one is trusted less than this many times as much as the other are equally to blame."""
BLAMELESS = 0.05
"""So much of a fault is forgotten."""
NEWCOMER = GOOD / (GOOD + BAD)
"""The trust in a peer of which nothing is known."""
BELIEVED = 4.0
"""Where nobody is proven, a newcomer is believed to be this many times as fast as the usual one, not more."""
LIE = 256.0
"""Faults that a peer has for rows that it did not compute, as two auditors found."""
LIE_HALF_LIFE_S = 86400.0
"""Of that, half is forgiven in this time: whoever has a name for honesty is avoided for some three days."""
SESSIONS = 4
"""The last sessions whose pace counts."""
LIMIT = 4096


@dataclass(slots=True)
class _Record:
    answers: int = 0
    """Steps that count in its favour."""
    steps: int = 0
    """All of them."""
    faults: float = 0.0
    since: float = 0.0
    """When ``faults`` was right."""
    lied_at: float | None = None
    """When it last computed something else than it should have."""
    block_s: deque[float] = field(default_factory=lambda: deque(maxlen=SESSIONS))
    """Time of a step through one block, by session."""

    def passing_faults(self, now: float) -> float:
        return self.faults * 0.5 ** (max(0.0, now - self.since) / HALF_LIFE_S)

    def faults_now(self, now: float) -> float:
        lies = 0.0 if self.lied_at is None else LIE * lie_left(now - self.lied_at)
        return self.passing_faults(now) + lies


def lie_left(age_s: float) -> float:
    """What is left of a lie after so long; one from the future, by a clock that was set back, is new."""
    return 0.5 ** (max(0.0, age_s) / LIE_HALF_LIFE_S)


class Reputation:
    """The peers that one client has used, at most ``LIMIT``.

    Forgotten is first who has not proven itself, of those the one heard of longest ago.
    """

    def __init__(self) -> None:
        self._records: OrderedDict[PeerId, _Record] = OrderedDict()

    def answered(self, peers: Iterable[PeerId]) -> None:
        """A step came back through these peers."""
        for peer in peers:
            record = self._record(peer)
            record.answers = min(record.answers + 1, MOST_ANSWERS)
            record.steps += 1

    def steps(self, peer: PeerId) -> int:
        """How many steps have ever come back through the peer."""
        record = self._records.get(peer)
        return record.steps if record else 0

    def paced(self, peer: PeerId, block_s: float) -> None:
        """A session is over in which a decode step took ``block_s`` for each block, waiting and computing."""
        self._record(peer).block_s.append(block_s)

    def failed(self, peer: PeerId, now: float, share: float = WHOLE_FAULT) -> None:
        """Hold a fault against a peer, or a share of one."""
        record = self._record(peer)
        record.faults, record.since = record.passing_faults(now) + share, now

    def lied(self, peer: PeerId, at: float) -> None:
        """A peer computed something else than it should have, as was shown at the time ``at``."""
        record = self._record(peer)
        record.lied_at = at if record.lied_at is None else max(record.lied_at, at)

    def trust(self, peer: PeerId, now: float) -> float:
        """The share of steps that the peer is expected to do well, in (0, 1)."""
        record = self._records.get(peer) or _Record()
        good = GOOD + record.answers
        return good / (good + BAD + FAULT * record.faults_now(now))

    def distrusted(self, peer: PeerId, now: float) -> bool:
        """Whether a peer is trusted clearly less than one of which nothing is known."""
        return self.trust(peer, now) < NEWCOMER / ALIKE

    def proven(self, peer: PeerId) -> bool:
        """Whether the peer has answered often enough for a picture of it."""
        record = self._records.get(peer)
        return record is not None and record.answers >= PROVEN

    def to_blame(self, peers: Sequence[PeerId], now: float) -> list[PeerId]:
        """Who of peers that contradict each other is to go: the least trusted, and who is hardly more so."""
        trust = {peer: self.trust(peer, now) for peer in peers}
        least = min(trust.values())
        return [peer for peer in peers if trust[peer] < ALIKE * least]

    def believed(
        self,
        candidates: Sequence[Candidate],
        now: float,
        *,
        trial: bool = False,
        segments: Sequence[float] | None = None,
    ) -> list[Candidate]:
        """The candidates as they are to be counted on: with trust, and with speeds that are to be believed.

        Args:
            trial: take newcomers with a clean name at their word, as far as speeds can be believed.
            segments: as of :func:`shoal.routing.prices.price`.
        """
        worth = {c.peer: worth_of(c.span, segments) for c in candidates}
        least_s = self._least_block_s(candidates, worth)
        return [self._believed(c, least_s, worth[c.peer], now, trial) for c in candidates]

    def _believed(
        self, candidate: Candidate, least_s: float, worth: float, now: float, trial: bool
    ) -> Candidate:
        record = self._records.get(candidate.peer) or _Record()
        trusted = trial and record.faults_now(now) < BLAMELESS and record.answers < PROVEN
        if record.block_s:
            least_s = min(record.block_s)
        elif trusted:
            least_s /= BELIEVED
        step_s = max(candidate.step_s, least_s * worth) if candidate.step_s or record.block_s else 0.0
        return replace(candidate, step_s=step_s, trust=1.0 if trusted else self.trust(candidate.peer, now))

    def _least_block_s(self, candidates: Sequence[Candidate], worth: Mapping[PeerId, float]) -> float:
        """Seconds for a block in less than which no newcomer is believed; 0 when nobody has measured any."""
        seen = [min(r.block_s) for c in candidates if (r := self._records.get(c.peer)) and r.block_s]
        if seen:
            return median(seen)
        told = {c.peer: c.step_s / worth[c.peer] for c in candidates if c.step_s}
        proven = [block_s for peer, block_s in told.items() if self.proven(peer)]
        if proven:  # in sessions too short to be timed
            return median(proven)
        return median(told.values()) / BELIEVED if told else 0.0

    def _record(self, peer: PeerId) -> _Record:
        record = self._records.get(peer)
        if record is None:
            record = self._records[peer] = _Record()
        else:
            self._records.move_to_end(peer)
        if len(self._records) > LIMIT:
            others = (
                one
                for one, seen in self._records.items()
                if seen.answers < PROVEN and seen.lied_at is None and one != peer
            )
            del self._records[next(others, next(iter(self._records)))]
        return record
