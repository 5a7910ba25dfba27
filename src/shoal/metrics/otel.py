"""Spans to a collector, by OTLP over HTTP. The only place that knows OpenTelemetry; needs ``shoal[otel]``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager as ContextManager
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from shoal.errors import UsageError
from shoal.metrics.tracing import TraceSpan, exporting_to

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

SENT_WITHIN_S = 5
"""How long a collector may take for a batch, and for the last ones. What does not arrive is lost, and
nobody waits for it."""
QUEUED = 2048
"""Spans that wait for it; the newest are lost where it is too slow."""


def exporting(endpoint: str, service: str, instance: str) -> ContextManager[None]:
    """Export spans of this process until the block ends, unless a block that began before does it still.

    Args:
        endpoint: where the collector takes OTLP over HTTP, as ``http://127.0.0.1:4318``; empty: none is.
        service: what this process is: ``shoal``.
        instance: which one: its peer id.

    Raises:
        UsageError: the extra is not installed, or the endpoint is no address.
    """
    return _exporting(endpoint, service, instance) if endpoint else nullcontext()


@contextmanager
def _exporting(endpoint: str, service: str, instance: str) -> Generator[None]:
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(
            f"{endpoint!r} is no address of a collector", check="write it as http://127.0.0.1:4318"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "spans can be exported only with OpenTelemetry, which is not installed",
            check="leave otlp_endpoint out, or install the extra",
            next_command='pip install "shoal[otel]"',
        ) from error
    # A collector that is away is told of once a batch, with a traceback, by the library itself.
    # By this logger: a filter is not asked about what loggers below its own log.
    logging.getLogger("opentelemetry.sdk._shared_internal").addFilter(_without_traceback)
    resource = Resource.create({"service.name": service, "service.instance.id": instance})
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=SENT_WITHIN_S)
    processor = BatchSpanProcessor(exporter, max_queue_size=QUEUED)
    try:
        with exporting_to(partial(_export, processor, resource)):
            yield
    finally:
        # The library waits up to 30 s for a collector that takes nothing. Nobody else does.
        ending = threading.Thread(target=processor.shutdown, name="end of spans", daemon=True)
        ending.start()
        ending.join(SENT_WITHIN_S)


def _export(processor: BatchSpanProcessor, resource: Resource, span: TraceSpan) -> None:
    from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags  # noqa: PLC0415

    def named(id: bytes, *, remote: bool) -> SpanContext:
        trace = int.from_bytes(span.context.trace, "big")
        return SpanContext(trace, int.from_bytes(id, "big"), remote, TraceFlags(TraceFlags.SAMPLED))

    processor.on_end(
        ReadableSpan(
            span.name,
            named(span.context.span, remote=False),
            named(span.parent, remote=True) if span.parent else None,
            resource,
            span.attributes | ({"error.type": span.error} if span.error else {}),
            kind=SpanKind[span.kind.upper()],
            instrumentation_scope=InstrumentationScope("shoal"),
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.started_ns,
            end_time=span.ended_ns,
        )
    )


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True
