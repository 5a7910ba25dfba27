"""The last requests: what the page's table shows, and what is measured of each."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import trio

from shoal.client.audits.protection import Protection
from shoal.client.receipts.pull import AnswerReceipts
from shoal.client.seq2seq.encoder_pass import EncoderPass
from shoal.client.seq2seq.sides import all_hops
from shoal.client.session import Session
from shoal.client.timing import Timing

KEPT = 100
RequestStatus = Literal["running", "done", "failed", "cancelled"]


@dataclass(eq=False, slots=True)
class Record:
    """One request, while it is answered and for a while after."""

    id: str
    model: str
    caller: str
    arrived: float
    """On trio's clock; ``started`` is the same by the wall clock."""
    started: float
    state: RequestStatus = "running"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    charged: int = 0
    """Of these and the prompt's tokens, those that its caller's limits know of."""
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    error: str | None = None
    route: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    hops: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    encoder: EncoderPass | None = None
    """How the prompt came through an encoder, of models that have one before a decoder."""
    own: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The blocks that the gateway ran itself (:class:`shoal.client.ends.OwnSpan`)."""
    reroutes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    receipts: dict[str, Any] = field(default_factory=dict[str, Any])
    """What its hops have signed, where that was asked for, until the next request."""
    protection: Protection | None = None
    """What came of the protection of its answer, once that is complete; of several choices, where one was
    found out, of that."""
    speculation: dict[str, Any] = field(default_factory=dict[str, Any])
    """What was guessed ahead (:class:`shoal.client.speculation.counts.SpeculationCounts`)."""

    def signed(self, receipts: AnswerReceipts) -> None:
        """Take what its hops have signed."""
        faults = [fault.what for fault in receipts.faults]
        self.receipts = {"receipts": msgspec.to_builtins(receipts.kept), "receipt_faults": faults}

    def protected(self, protection: Protection) -> None:
        """Take what came of the protection of a choice."""
        if not self.found_out:
            self.protection = protection

    @property
    def found_out(self) -> bool:
        """Whether an audit has shown that a hop computed something else."""
        return self.protection is not None and bool(self.protection.cheats)

    def follow(self, session: Session) -> None:
        """Note which way the session goes now."""
        self.route = [
            {"peer": hop.address.peer, "start": hop.span.start, "end": hop.span.end, "carrier": carrier}
            | ({"attested": hop.attested} if hop.attested else {})
            for hop, carrier in all_hops(session)
        ]
        self.encoder = session.encoder
        self.own = [own.shown() for own in session.ends.own]
        self.reroutes = [
            {"at": r.at, "gap_s": round(r.gap_s, 3), "lost": list(r.lost), "way": r.way}
            for r in session.reroutes
        ]

    def measured(self, timing: Timing) -> None:
        """Take what one choice's timing says; its single steps are not kept."""
        self.tokens_per_s = round(timing.tokens_per_s, 2) or None
        self.speculation = timing.speculation.shown()
        steps = max((len(times) for times in timing.hops.values()), default=0)
        if not steps:
            return
        busy = {
            hop: (_median([t.compute_us for t in ts]), _median([t.waiting_us for t in ts]))
            for hop, ts in timing.hops.items()
        }
        step_ms = (timing.last_token - timing.first_token) / max(timing.tokens - 1, 1) * 1e3
        between = max(step_ms - sum(c + w for c, w in busy.values()), 0.0) / (len(busy) + 1)
        before = [(c, 0.0, w) for c, w in self.encoder.times_ms] if self.encoder else []
        self.hops = [
            {"compute_ms": round(c, 3), "network_ms": round(n, 3), "waiting_ms": round(w, 3)}
            for c, n, w in [*before, *((c, between, w) for _, (c, w) in sorted(busy.items()))]
        ]

    def shown(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "id": self.id,
            "model": self.model,
            "state": self.state,
            "started": self.started,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "ttft_ms": None if self.ttft_s is None else round(self.ttft_s * 1e3, 1),
            "tokens_per_s": self.tokens_per_s,
            "error": self.error,
            "route": self.route,
            "hops": self.hops,
            "own": self.own,
            "reroutes": self.reroutes,
            "speculation": self.speculation,
            "protection": self.protection.shown() if self.protection else None,
        }

    def told(self, *, last: bool = False) -> dict[str, Any]:
        """What our own page gets with an answer; other clients ignore it.

        Args:
            last: it is told no more: with what the hops have signed, where that was asked for.
        """
        shown = self.shown()
        return (
            {"request": self.id}
            | (self.receipts if last else {})
            | {
                name: shown[name]
                for name in (
                    "route",
                    "own",
                    "tokens_per_s",
                    "ttft_ms",
                    "reroutes",
                    "speculation",
                    "protection",
                )
            }
        )


class Records:
    """The last requests, the newest first; tells whoever listens of every change and token."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=KEPT)
        self.on_change: Callable[[], None] = lambda: None
        self.on_token: Callable[[Record], None] = lambda record: None
        self.tokens = 0
        """Of all answers so far."""

    def begin(self, prefix: str, model: str, caller: str) -> Record:
        """A request has come; its id is ours, whatever the client called it."""
        for earlier in self._records:
            if earlier.state != "running":
                earlier.receipts = {}  # whoever wanted them has them
        record = Record(f"{prefix}{secrets.token_hex(12)}", model, caller, trio.current_time(), time.time())
        self._records.appendleft(record)
        self.on_change()
        return record

    def token(self, record: Record) -> None:
        """One more token of its answer has come."""
        record.tokens += 1
        self.tokens += 1
        if record.ttft_s is None:
            record.ttft_s = trio.current_time() - record.arrived
        self.on_token(record)

    def end(self, record: Record, state: RequestStatus, error: str | None = None) -> None:
        """It is over."""
        record.state, record.error = state, error
        self.on_change()

    def shown(self) -> Sequence[dict[str, Any]]:
        """As the page reads them."""
        return [record.shown() for record in self._records]


def _median(microseconds: list[int]) -> float:
    """In milliseconds."""
    return sorted(microseconds)[len(microseconds) // 2] / 1e3 if microseconds else 0.0
