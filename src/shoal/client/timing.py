"""Where the time of one answer went, for whoever asked and for whoever traces it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from shoal.client.session import Session
from shoal.client.speculation.counts import SpeculationCounts
from shoal.errors import ShoalError
from shoal.metrics import tracing
from shoal.metrics.tracing import TraceContext, TraceSpan
from shoal.wire.messages import HopTime

Operation = Literal["chat", "embeddings", "prompt_scores"]
"""What an answer is made for. The last word is our own."""


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
    speculation: SpeculationCounts = field(default_factory=SpeculationCounts)
    """What was guessed ahead."""

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


@contextmanager
def traced_answer(
    session: Session, prompt_tokens: int, timing: Timing, operation: Operation = "chat"
) -> Generator[None]:
    """An answer of a session is made in the block. Its hops know from here on for which span they work.

    Without anybody who traces it, nothing is told to anybody.
    """
    above = tracing.current()
    if above is None and not tracing.exports():
        yield
        return
    context = above.child() if above else TraceContext.begin()
    span = TraceSpan(f"{operation} {session.shape.name}", "client", context, above.span if above else b"")
    session.ring.places.begin_turn(context)
    try:
        yield
    except ShoalError as error:
        span.error = error.code
        raise
    finally:
        session.ring.places.begin_turn(None)
        tracing.end(span, _facts(session, prompt_tokens, timing, operation))


def _facts(
    session: Session, prompt_tokens: int, timing: Timing, operation: Operation
) -> Mapping[str, str | int | float]:
    """By the names of OpenTelemetry's conventions for generative models, and our own for what they lack."""
    facts: dict[str, str | int | float] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "shoal",
        "gen_ai.request.model": session.shape.name,
        "gen_ai.usage.input_tokens": prompt_tokens,
        "gen_ai.usage.output_tokens": timing.tokens,
        "shoal.hops": len(session.ring.route),
        "shoal.reused_tokens": timing.reused,
        "shoal.reroutes": len(session.reroutes),
    }
    if timing.tokens:
        facts["gen_ai.response.time_to_first_chunk"] = timing.ttft_s
    return facts
