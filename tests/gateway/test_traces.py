"""A trace of an answer: its parts on gateway and hops, in a collector, with parents and times that add up."""

from __future__ import annotations

import gzip
import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from shoal.metrics import tracing
from shoal.metrics.logs import JsonLines
from shoal.metrics.otel import exporting
from shoal.metrics.tracing import TraceSpan
from tests.web_server import WebServer

CALLER = "00-" + "ab" * 16 + "-" + "cd" * 8
TRACE = b"\xab" * 16


class Collector(WebServer):
    """Takes what it is sent."""

    def __init__(self) -> None:
        self.spans: list[OtlpSpan] = []
        self.services: set[str] = set()
        super().__init__(("127.0.0.1", 0), TakesSpans)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class TakesSpans(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.services |= {
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            }
            self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def facts(span: OtlpSpan) -> dict[str, object]:
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}


def seconds(span: OtlpSpan) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all spans that have ended."""
    names: list[str] = []
    end = tracing.end

    def noted(span: TraceSpan, *args: object) -> None:
        end(span, *args)
        names.append(span.name)

    monkeypatch.setattr(tracing, "end", noted)
    return names


async def test_an_answer_over_three_hops_is_one_trace(
    gateway, collector: Collector, ended: list[str]
) -> None:
    with exporting(collector.endpoint, "shoal", "me"):
        for _ in range(2):  # the second one goes on with the session of the first
            answer = await gateway.post(
                "/v1/chat/completions",
                headers={"traceparent": f"{CALLER}-01"},
                messages=[{"role": "user", "content": "hello"}],
            )
            assert answer.status_code == 200
        with trio.fail_after(25):
            while len(ended) < 2 * 5:  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert collector.services == {"shoal"}
    assert {span.trace_id for span in collector.spans} == {TRACE}
    roots = [span for span in collector.spans if span.parent_span_id == b"\xcd" * 8]
    assert [facts(root)["http.response.status_code"] for root in roots] == [200, 200]
    assert facts(roots[-1])["shoal.request_id"] == answer.headers["x-request-id"]
    for root in roots:
        (chat,) = [span for span in collector.spans if span.parent_span_id == root.span_id]
        hops = [span for span in collector.spans if span.parent_span_id == chat.span_id]
        assert sorted(facts(hop)["shoal.blocks"] for hop in hops) == ["0:2", "2:3", "3:6"]
        assert facts(chat)["gen_ai.operation.name"] == "chat"
        assert facts(chat)["gen_ai.usage.output_tokens"] == 8
        assert seconds(chat) <= seconds(root)
        for hop in hops:
            assert facts(hop)["shoal.steps"] >= 8
            assert facts(hop)["shoal.rows"] >= 8
            assert 0 < facts(hop)["shoal.compute_s"] <= seconds(hop)
            assert chat.start_time_unix_nano <= hop.start_time_unix_nano
            assert hop.end_time_unix_nano <= chat.end_time_unix_nano
    assert len(collector.spans) == 2 * 5


async def test_a_caller_that_wants_no_trace_gets_none(gateway, collector: Collector) -> None:
    with exporting(collector.endpoint, "shoal", "me"):
        answer = await gateway.post(
            "/v1/chat/completions",
            headers={"traceparent": f"{CALLER}-00"},
            messages=[{"role": "user", "content": "hello"}],
        )
        assert answer.status_code == 200
    assert collector.spans == []


async def test_a_collector_that_is_away_delays_nobody(gateway) -> None:
    with exporting("http://127.0.0.1:9", "shoal", "me"):
        assert (await gateway.chat()).status_code == 200


@contextmanager
def json_lines(name: str) -> Iterator[io.StringIO]:
    """What a part of Shoal logs, as programs read it."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    log = logging.getLogger(name)
    level = log.level
    log.addHandler(handler)
    log.setLevel("DEBUG")
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


async def test_logs_on_the_way_have_the_trace_without_any_collector(gateway) -> None:
    with json_lines("shoal.node.tracing.turns") as hops, json_lines("shoal.gateway") as here:
        await gateway.post(
            "/v1/chat/completions",
            headers={"traceparent": f"{CALLER}-01"},
            messages=[{"role": "user", "content": "hello"}],
        )
        await gateway.post(
            "/v1/chat/completions", headers={"traceparent": f"{CALLER}-01"}, model="none", messages=[]
        )
    assert hops.getvalue().count(f'"trace":"{TRACE.hex()}"') == 3
    lines = here.getvalue().splitlines()
    assert all(TRACE.hex() in line for line in lines)
