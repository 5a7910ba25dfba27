"""What a hop does for one answer, as a span of its trace."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from shoal.executor.engine import StepOutput
from shoal.metrics import tracing
from shoal.metrics.tracing import TraceContext, TraceSpan
from shoal.wire.messages import Open, Step


@dataclass(eq=False)
class HopTurn:
    """The part of an answer that one hop has."""

    parent: TraceContext
    began_ns: int = field(default_factory=time.time_ns)
    ended_ns: int = 0
    steps: int = 0
    rows: int = 0
    compute_us: int = 0
    waiting_us: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, step: Step, result: StepOutput) -> None:
        """A step has run; from any thread."""
        now = time.time_ns()
        with self._lock:
            self.ended_ns = now
            self.steps += 1
            self.rows += step.tokens
            self.compute_us += result.compute_us
            self.waiting_us += result.waiting_us

    def close(self, opened: Open) -> None:
        """Export it; one without a step is nothing."""
        with self._lock:
            if not self.steps:
                return
            span = TraceSpan(
                f"hop {opened.start}:{opened.end}",
                "server",
                self.parent.child(),
                self.parent.span,
                started_ns=self.began_ns,
                ended_ns=self.ended_ns,
            )
            facts = {
                "shoal.hop": opened.hop,
                "shoal.blocks": f"{opened.start}:{opened.end}",
                "shoal.numerics": opened.numerics,
                "shoal.steps": self.steps,
                "shoal.rows": self.rows,
                "shoal.compute_s": self.compute_us / 1e6,
                "shoal.waiting_s": self.waiting_us / 1e6,
            }
        tracing.end(span, facts)
