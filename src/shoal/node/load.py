"""How busy a node is: what it announces of its speed, and what it counts of its steps.

Steps are noted on the thread that computes, and read by the event loop: each figure is one number, so that a
reader sees the old one or the new one.
"""

from __future__ import annotations

import time
from functools import partial

from shoal.errors import ShoalError
from shoal.executor.engine import StepOutput
from shoal.executor.schedule import MERGED_ROWS
from shoal.metrics.meters import Metrics, Phase
from shoal.metrics.trace import HopTrace, StepTrace, Trace, hop_step
from shoal.types import PeerId, Span
from shoal.wire.messages import Step

STEP_WEIGHT = 0.1
"""Of the newest decode step in what is announced: some ten steps later a change of the load shows."""


class LoadMeter:
    """What a node measures of its own work."""

    def __init__(self, peer: PeerId, step_s: float) -> None:
        self._peer = peer
        self.metrics = Metrics()
        self.trace = Trace()
        """Steps as this hop saw them."""
        self.steps = 0
        """Steps that were computed."""
        self.tokens = 0
        """Tokens that they added to caches."""
        self.step_ms = 0.0
        """Smoothed time of a decode step through the span; while no session is open, that of one alone."""
        self.wait_ms = 0.0
        """Smoothed time that a decode step waits for its turn."""
        self.reset(step_s)

    def reset(self, step_s: float) -> None:
        """Nobody is served: a step would take ``step_s`` again.

        Nobody would come back to a node that was slow once, and find out that it no longer is.
        """
        self.step_ms, self.wait_ms = 1000 * step_s, 0.0

    def note_step(self, span: Span, step: Step, result: StepOutput, *, announced: bool) -> None:
        """Count a step that was computed.

        Args:
            announced: whether it ran on the span that new sessions go to: what others are told is of that.
        """
        self.steps += 1
        self.tokens += step.tokens
        self.metrics.step(phase_of(step), step.tokens, result.compute_us, result.waiting_us)
        self.trace.step(
            partial(self._traced, time.time(), span, step, result.compute_us / 1e3, result.waiting_us / 1e3)
        )
        if step.tokens == 1 and announced:
            self._smooth(result.compute_us / 1e3, result.waiting_us / 1e3)

    def note_failure(self, error: ShoalError) -> None:
        """Count a step, or a session, that came to nothing."""
        self.metrics.failures.labels(error.code).inc()

    def note_refusal(self, error: ShoalError) -> None:
        """Count a session that was not let in."""
        self.metrics.refusals.labels(error.code).inc()

    def note_reroute(self, *, resent: bool) -> None:
        """Count a loss beside this hop that a session survived."""
        self.metrics.reroutes.labels("resend" if resent else "neighbour").inc()

    def _traced(self, at: float, span: Span, step: Step, compute_ms: float, waiting_ms: float) -> StepTrace:
        here = HopTrace(self._peer, str(span), compute_ms, waiting_ms)
        return hop_step(at, step.session, step.number, step.position, step.tokens, here)

    def _smooth(self, step_ms: float, wait_ms: float) -> None:
        old = self.step_ms or step_ms
        self.step_ms = old + STEP_WEIGHT * (step_ms - old)
        self.wait_ms += STEP_WEIGHT * (wait_ms - self.wait_ms)


def phase_of(step: Step) -> Phase:
    """One token is decoded; a few that are all wanted back verify guesses; any others are a prompt's."""
    if step.tokens == 1:
        return "decode"
    return "verify" if step.wanted == step.tokens <= MERGED_ROWS else "prefill"
