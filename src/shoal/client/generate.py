"""The main loop: a prompt in, deltas out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import trio

from shoal.client.sampling import Constraint, Sampler, Sampling
from shoal.client.scores import TokenScore
from shoal.client.session import Session
from shoal.models.text.detokenizer import Detokenizer
from shoal.wire.messages import HopTime

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of streamed output."""

    text: str
    """New text; empty while a character or a possible stop string is incomplete."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """Set on the last delta: ``stop`` at an end token or stop string, ``length`` at ``max_tokens``."""
    score: TokenScore | None = None
    """How likely the token was, if ``Sampling.top_logprobs`` asks for it."""


@dataclass(slots=True)
class Timing:
    """Where an answer's time went, in seconds on this machine's clock."""

    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    tokens: int = 0
    reused: int = 0
    """Tokens of the prompt whose KV the session had already."""
    hops: dict[int, list[HopTime]] = field(default_factory=dict)
    """Decode steps by hop; the prefill is not among them."""

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.first_token - self.started

    @property
    def tokens_per_s(self) -> float:
        """Decode speed: tokens after the first, over the time since it."""
        elapsed = self.last_token - self.first_token
        return (self.tokens - 1) / elapsed if self.tokens > 1 and elapsed > 0 else 0.0

    def note(self, now: float, times: Sequence[HopTime]) -> None:
        """Count one token that came at ``now``."""
        self.tokens += 1
        self.last_token = now
        if self.tokens == 1:
            self.first_token = now
            return
        for time in times:
            self.hops.setdefault(time.hop, []).append(time)


async def generate(
    session: Session,
    prompt: Sequence[int],
    detokenizer: Detokenizer | None,
    *,
    sampling: Sampling,
    max_tokens: int,
    stop: Sequence[str] = (),
    end_tokens: frozenset[int] = frozenset(),
    constraint: Constraint | None = None,
    timing: Timing | None = None,
) -> AsyncGenerator[Delta]:
    """Stream the continuation of ``prompt`` in ``session``, until an end token, a stop string or the limit.

    What the session holds already of ``prompt`` is not computed again; what else it holds is forgotten.

    Args:
        detokenizer: makes the deltas' text; ``None`` for a model that has no tokenizer.
        constraint: the grammar that the answer keeps to; it ends the answer where nothing may follow.

    Raises:
        PromptTooLong, UsageError: before anything was sent.
        ShoalError: the session is lost or a step failed.
    """
    timing = timing if timing is not None else Timing()
    sampler = Sampler(sampling, constraint)
    text = StopFilter(stop)
    timing.started = trio.current_time()
    timing.reused = session.reusable(prompt)
    if timing.reused < len(session.token_ids):
        session.roll_back(timing.reused)
    advanced = await session.advance(prompt[timing.reused :], sampler, more=max_tokens > 1)
    for count in range(1, max_tokens + 1):
        token = advanced.token
        timing.note(trio.current_time(), advanced.times)
        ended = token in end_tokens
        shown = text.push("" if ended or detokenizer is None else detokenizer.push(token))
        finished = ended or text.stopped or sampler.complete
        if finished or count == max_tokens:
            shown += text.finish("" if text.stopped or detokenizer is None else detokenizer.finish())
            yield Delta(shown, (token,), "stop" if finished else "length", sampler.score)
            return
        yield Delta(shown, (token,), None, sampler.score)
        advanced = await session.advance([token], sampler, more=count + 1 < max_tokens)


class StopFilter:
    """Passes text on until a stop string occurs; holds back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What may be shown now. Nothing follows a stop string, nor is the string itself shown."""
        if self.stopped:
            return ""
        self._held += text
        found = [(place + len(s), place) for s in self._stop if (place := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            _, place = min(found)  # the one that was complete first
            shown, self._held = self._held[:place], ""
            return shown
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self, text: str) -> str:
        """The rest, at the end of the output."""
        shown = self.push(text) + self._held
        self._held = ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` begin ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
