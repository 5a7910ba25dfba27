"""What waits at a hop for one session, as plain state: no I/O, no clock, no threads of its own.

A step goes through four calls::

    accept   may it come in? (the session's rules, and the bounds of what may wait)
    put      it is here: it may run, or waits because what comes out would have nowhere to go
    done     it has run, or failed
    sent     what came out is on its way

A step from an earlier position takes the session back, so what waits from there on has become useless: the
client has given it up. What is held is dropped here, what waits for its forward by the engine.

Two threads share a queue: the event loop accepts and puts, the thread that computes is done and has sent.
Nothing is locked, because each number has one writer; whoever subtracts one thread's number from another's
may see a step as waiting that has just gone, and never the reverse.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from shoal.errors import Busy
from shoal.types import Codec
from shoal.wire.messages import Open, Step
from shoal.wire.session import HopSession

MAX_STEPS = 64
"""Steps of one session that may wait at a hop."""
MAX_LENGTHS = 2
"""Tokens of those steps, in whole lengths of the session; a client that does not go back sends one."""


@dataclass(slots=True)
class _Tally:
    """Steps that have passed a point. Only ever counted up, and by one thread."""

    steps: int = 0
    tokens: int = 0
    fills: int = 0
    """Steps that only fill a cache: nobody is owed an answer to those."""
    fill_tokens: int = 0

    def add(self, step: Step) -> None:
        if step.hops_left is None:
            self.steps += 1
            self.tokens += step.tokens
        else:
            self.fills += 1
            self.fill_tokens += step.tokens


class HopQueue:
    """Steps of one session at one hop.

    Args:
        opened: what the session's client asked for.
        width: elements of a token's hidden states.
        now: when the session was opened, in seconds of whatever clock.
    """

    def __init__(self, opened: Open, width: int, now: float) -> None:
        self._rules = HopSession(opened, width)
        self._limit = opened.tokens
        self._came = _Tally()  # written by the event loop
        self._gone = _Tally()  # written by the thread that computes
        self._dropped = _Tally()  # written by the event loop
        self._held: deque[tuple[Step, bytes]] = deque()
        self.since = now
        """When the last step came; before the first, when the session was opened."""
        self.pause_s = 0.0
        """How long the last step was awaited."""
        self.last_taken = 0
        """The largest number of a client's step that has come."""
        self.last_sent = 0
        """The largest one whose result was sent on."""

    @property
    def steps(self) -> int:
        """Steps that are here whose client is owed an answer."""
        return self._came.steps - self._gone.steps - self._dropped.steps

    @property
    def held(self) -> int:
        """Steps that wait for room on the way onward, in the order in which they came."""
        return len(self._held)

    @property
    def first_held(self) -> Step | None:
        """The one that :meth:`next_held` gives."""
        return self._held[0][0] if self._held else None

    @property
    def idle(self) -> bool:
        """Whether no step waits or runs: the cache is as long as :attr:`length` says."""
        return not self._held and not self.computing

    @property
    def length(self) -> int:
        """Tokens in the cache once every accepted step has run."""
        return self._rules.length

    @property
    def codec(self) -> Codec | None:
        """In which the session's steps come; ``None`` before the first."""
        return self._rules.codec

    @property
    def computing(self) -> bool:
        """Whether a step is with the engine. For what is held, somebody does not read."""
        return self.steps + self._came.fills - self._gone.fills - self._dropped.fills > self.held

    @property
    def _fill_tokens(self) -> int:
        return self._came.fill_tokens - self._gone.fill_tokens - self._dropped.fill_tokens

    def accept(self, step: Step) -> None:
        """Let a step in, or say why not.

        Raises:
            Busy: too much of this session waits already.
            RemoteProtocolError, PositionGap: as :meth:`HopSession.accept`.
        """
        # Refills have a bound of their own: they come at once, for the whole cache, and nobody waits for
        # them.
        if step.hops_left is None:
            if self.steps >= MAX_STEPS:
                raise Busy(f"{MAX_STEPS} steps of this session are waiting already")
            waiting = self._came.tokens - self._gone.tokens - self._dropped.tokens
            if waiting + step.tokens > MAX_LENGTHS * self._limit:
                raise Busy(f"{waiting} tokens of this session are waiting already")
        elif self._fill_tokens + step.tokens > self._limit:
            raise Busy("more is sent again than this session has room for")
        self._rules.accept(step)

    def put(self, step: Step, payload: bytes, now: float, *, room: bool) -> bool:
        """Take in a step that was accepted, and drop what is held and superseded by it.

        Args:
            room: whether what comes out has room on the way onward.

        Returns:
            Whether it may run now. If not it is held, and so is each step behind it, which keeps their order.
        """
        self.pause_s, self.since = now - self.since, now
        self._came.add(step)
        self.last_taken = max(self.last_taken, step.number)
        # Positions ascend, but where the session went back: what is superseded is at the end.
        while self._held and self._held[-1][0].position >= step.position:
            self._dropped.add(self._held.pop()[0])
        if room and not self._held:
            return True
        self._held.append((step, payload))
        return False

    def next_held(self) -> tuple[Step, bytes]:
        """The step that has been held for longest, which may run now. There must be one."""
        return self._held.popleft()

    def done(self, step: Step) -> None:
        """A step has run, or failed; on the thread that computes."""
        self._gone.add(step)

    def sent(self, step: Step) -> None:
        """What came out of a step is on its way; on the thread that computes."""
        self.last_sent = max(self.last_sent, step.number)

    def take_up(self, length: int, codec: Codec) -> None:
        """The cache holds so many tokens of an earlier session, whose steps came in ``codec``."""
        self._rules.take_up(length, codec)

    def forget(self, position: int) -> None:
        """The step that was to run at ``position`` failed: what follows it no longer counts."""
        self._rules.forget(position)
