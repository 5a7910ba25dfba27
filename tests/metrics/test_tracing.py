"""Traces: what a caller's header says, and to whom spans go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from shoal.errors import UsageError
from shoal.metrics import otel, tracing
from shoal.metrics.otel import exporting
from shoal.metrics.tracing import TraceContext, TraceSpan

PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def test_a_callers_header_names_its_trace_and_span() -> None:
    assert TraceContext.parse(PARENT) == TraceContext(b"\xab" * 16, b"\xcd" * 8, sampled=True)
    assert TraceContext.parse(PARENT[:-1] + "0") == TraceContext(b"\xab" * 16, b"\xcd" * 8, sampled=False)
    assert TraceContext.parse("cc" + PARENT[2:] + "-what-later-versions-add") is not None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        PARENT.upper(),
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + PARENT[35:],
        PARENT[:36] + "0" * 16 + "-01",
        "x" * 100_000,
    ],
)
def test_what_is_no_header_of_a_trace_counts_as_none(header: str) -> None:
    assert TraceContext.parse(header) is None


def test_a_child_is_in_the_same_trace() -> None:
    above = TraceContext.begin()
    child = above.child()
    assert (child.trace, child.sampled) == (above.trace, above.sampled)
    assert child.span != above.span


def test_a_span_goes_where_it_is_wanted_and_only_if_its_trace_is() -> None:
    found: list[TraceSpan] = []
    wanted = TraceContext.begin()
    unwanted = TraceContext(wanted.trace, wanted.span, sampled=False)
    tracing.end(TraceSpan("before", "internal", wanted, b""))
    with tracing.exporting_to(found.append):
        assert tracing.exports()
        for context in (wanted, unwanted):
            tracing.end(TraceSpan("now", "internal", context, b""), {"a": 1})
    tracing.end(TraceSpan("after", "internal", wanted, b""))
    assert [(span.name, span.attributes) for span in found] == [("now", {"a": 1})]
    assert found[0].ended_ns >= found[0].started_ns


def test_work_in_a_block_is_for_its_span() -> None:
    context = TraceContext.begin()
    assert tracing.current() is None
    with tracing.working_for(context):
        assert tracing.current() is context
    assert tracing.current() is None


def test_what_is_no_collector_is_said_at_once() -> None:
    with (
        pytest.raises(UsageError, match="is no address of a collector"),
        exporting("localhost:4318", "shoal", "me"),
    ):
        pass
    with exporting("", "shoal", "me"):
        assert not tracing.exports()


def test_where_the_first_of_two_swarms_of_a_process_ends_the_second_exports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[tuple[str, object]] = []

    def take(exporter: object, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        sent.extend((span.name, span.resource.attributes["service.instance.id"]) for span in spans)
        return SpanExportResult.SUCCESS

    monkeypatch.setattr("opentelemetry.exporter.otlp.proto.http.trace_exporter.OTLPSpanExporter.export", take)
    with ExitStack() as first:
        first.enter_context(exporting("http://127.0.0.1:9", "shoal", "first"))
        with exporting("http://127.0.0.1:9", "shoal", "second"):
            tracing.end(TraceSpan("both", "internal", TraceContext.begin(), b""))
            first.close()
            tracing.end(TraceSpan("one", "internal", TraceContext.begin(), b""))
    assert sent == [("both", "first"), ("one", "second")]
    assert not tracing.exports()


def test_a_collector_that_is_away_is_told_of_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*args: object) -> None:
        raise OSError("nobody is there")

    monkeypatch.setattr("opentelemetry.exporter.otlp.proto.http.trace_exporter.OTLPSpanExporter.export", away)
    with exporting("http://127.0.0.1:9", "shoal", "me"):
        tracing.end(TraceSpan("now", "internal", TraceContext.begin(), b""))
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert told.name.startswith("opentelemetry")
    assert told.exc_info is None


def test_nobody_waits_long_for_the_last_spans_to_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "SENT_WITHIN_S", 0.1)
    over = threading.Event()
    monkeypatch.setattr(BatchSpanProcessor, "shutdown", lambda _: over.wait(20))
    began = time.monotonic()
    with exporting("http://127.0.0.1:9", "shoal", "me"):
        pass
    took_s = time.monotonic() - began
    over.set()
    assert took_s < 10
