"""Which spans of time belong to one answer, on every machine that had a part in it.

A trace has an id of 16 bytes, each span in it one of 8. The id of the span above travels with what is asked:
in HTTP as ``traceparent`` (W3C Trace Context, level 1), to hops as :class:`shoal.wire.turn.TraceTurn`.
Whoever is set to exports the spans that it has measured, by its own clock (:mod:`shoal.metrics.otel`). The
others only name the trace in their logs.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
TRACE_BYTES, SPAN_BYTES = 16, 8


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span, as it is named to who works for it."""

    trace: bytes
    span: bytes
    sampled: bool = True
    """Whether whoever began the trace wants it exported."""

    @classmethod
    def begin(cls) -> TraceContext:
        """The first span of a new trace."""
        return cls(secrets.token_bytes(TRACE_BYTES), secrets.token_bytes(SPAN_BYTES))

    @classmethod
    def parse(cls, traceparent: str) -> TraceContext | None:
        """What a caller's header says; ``None`` where it is none, which is no error (section 4.3)."""
        found = _TRACEPARENT.fullmatch(traceparent.strip())
        if found is None or not int(found[1], 16) or not int(found[2], 16):
            return None
        return cls(bytes.fromhex(found[1]), bytes.fromhex(found[2]), bool(int(found[3], 16) & 1))

    def child(self) -> TraceContext:
        """A span below this one."""
        return TraceContext(self.trace, secrets.token_bytes(SPAN_BYTES), self.sampled)


@dataclass(slots=True)
class TraceSpan:
    """A span of time with what is known of it."""

    name: str
    kind: Literal["server", "client", "internal"]
    context: TraceContext
    parent: bytes
    """The span above it; empty for the first of a trace."""
    started_ns: int = field(default_factory=time.time_ns)
    """Since the epoch, by this machine's clock; so is ``ended_ns``."""
    ended_ns: int = 0
    attributes: dict[str, str | int | float] = field(default_factory=dict[str, str | int | float])
    error: str = ""
    """The code of what it failed for."""


SpanSink = Callable[[TraceSpan], None]
"""Takes a span that has ended, from any thread, and does not wait."""

_current: ContextVar[TraceContext | None] = ContextVar("trace", default=None)
_sinks: list[SpanSink] = []


def current() -> TraceContext | None:
    """The span that this task works for, if anybody traces it."""
    return _current.get()


@contextmanager
def working_for(context: TraceContext) -> Generator[None]:
    """Work for a span in the block, and in the tasks that are started in it."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def exporting_to(sink: SpanSink) -> Generator[None]:
    """Give spans to ``sink`` until the block ends, and once those that were there before it are gone."""
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)


def exports() -> bool:
    """Whether anybody wants spans of this process."""
    return bool(_sinks)


def end(span: TraceSpan, attributes: Mapping[str, str | int | float] | None = None) -> None:
    """The span ends now, where nothing says when it has; it is exported, if it is to be."""
    span.ended_ns = span.ended_ns or time.time_ns()
    span.attributes |= attributes or {}
    if span.context.sampled:
        # The oldest alone: a gateway and a node in one process have one collector. A copy, as another thread
        # may be the last one to want spans at this moment.
        for sink in _sinks[:1]:
            sink(span)
