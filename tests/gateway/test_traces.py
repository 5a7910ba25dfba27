"""A trace of an answer: its parts on gateway and hops, in a collector, with parents and times that add up."""

from __future__ import annotations

import gzip
import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from starlette.types import Receive, Scope, Send

from shoal.client.embeddings import embed_tokens
from shoal.client.prompt_scores import score_prompt
from shoal.client.timing import Timing, traced_answer
from shoal.errors import Busy
from shoal.gateway.access.traced import TraceMiddleware
from shoal.metrics import tracing
from shoal.metrics.logs import JsonLines
from shoal.metrics.otel import exporting
from shoal.metrics.tracing import TraceSpan
from shoal.models.embedding.settings import EmbeddingSettings
from shoal.node.tracing.hop_turn import HopTurn
from shoal.testing.swarm import memory_swarm
from shoal.wire.messages import Step
from tests.one_process import KERNELS
from tests.web_server import WebServer

from .conftest import THIRDS, served

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


async def test_texts_that_are_embedded_and_prompts_that_are_scored_are_traced_to_their_hops(
    tmp_path, checkpoint
) -> None:
    found: list[TraceSpan] = []
    settings = EmbeddingSettings(encoder=False, pooling="last", normalized=True, max_tokens=64)
    async with (
        memory_swarm(tmp_path, checkpoint, THIRDS, **KERNELS) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        with tracing.exporting_to(found.append):
            await embed_tokens(lambda _: nullcontext(session), [[5, 6, 7]], settings)
            session.roll_back(0)
            await score_prompt(session, [5, 6, 7], 1)
            with trio.fail_after(25):
                while len(found) < 2 * 4:  # noqa: ASYNC110
                    await trio.sleep(0.01)
    answers = [span for span in found if "gen_ai.operation.name" in span.attributes]
    assert [span.attributes["gen_ai.operation.name"] for span in answers] == ["embeddings", "prompt_scores"]
    for answer in answers:
        hops = [span for span in found if span.parent == answer.context.span]
        assert sorted(str(hop.attributes["shoal.blocks"]) for hop in hops) == ["0:2", "2:3", "3:6"]


async def test_after_a_replay_the_new_hops_are_in_the_trace_too(tmp_path, checkpoint) -> None:
    found: list[TraceSpan] = []
    async with (
        memory_swarm(tmp_path, checkpoint, THIRDS, **KERNELS) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        with tracing.exporting_to(found.append):
            with traced_answer(session, 3, Timing()):
                await session.step([5, 6, 7])
                found.clear()
                before = session.ring
                for index in range(3):
                    before.losses.lose(index, "a test")
                await session.step([8])
                assert session.ring is not before
                assert [reroute.way for reroute in session.reroutes] == ["replay"]
            with trio.fail_after(25):
                while len([span for span in found if "shoal.blocks" in span.attributes]) < 6:  # noqa: ASYNC110
                    await trio.sleep(0.01)
    (chat,) = [span for span in found if "shoal.blocks" not in span.attributes]
    hops = [span for span in found if "shoal.blocks" in span.attributes]
    # Of three hops twice: as they were, and as they were opened again.
    assert sorted(str(hop.attributes["shoal.blocks"]) for hop in hops) == 2 * ["0:2"] + 2 * ["2:3"] + 2 * [
        "3:6"
    ]
    assert {hop.parent for hop in hops} == {chat.context.span}


async def test_a_caller_that_wants_no_trace_gets_none(gateway, collector: Collector) -> None:
    with exporting(collector.endpoint, "shoal", "me"):
        answer = await gateway.post(
            "/v1/chat/completions",
            headers={"traceparent": f"{CALLER}-00"},
            messages=[{"role": "user", "content": "hello"}],
        )
        assert answer.status_code == 200
    assert collector.spans == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_a_lost_hop_ends_is_exported_as_failed(tmp_path, checkpoint, stream) -> None:
    found: list[TraceSpan] = []
    async with served(tmp_path, checkpoint, nodes={"resume_s": 1.0}) as gateway:

        async def lose_a_hop() -> None:
            while not any(shown["tokens"] for shown in gateway.gateway.records.shown()):  # noqa: ASYNC110
                await trio.sleep(0.01)
            gateway.swarm.kill(1)

        with tracing.exporting_to(found.append):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lose_a_hop)
                answer = await gateway.chat("go on", max_tokens=1500, logit_bias={"2": -100}, stream=stream)
                nursery.cancel_scope.cancel()
            with trio.fail_after(25):
                while not any(span.name.startswith("POST") for span in found):  # noqa: ASYNC110
                    await trio.sleep(0.01)
    assert answer.status_code == (200 if stream else 503)  # its head is out before the hop is lost
    errors = {span.name.split()[0]: span.error for span in found if span.error}
    assert errors == {"POST": "no_coverage" if stream else "503", "chat": "no_coverage"}


async def test_a_defect_and_a_refusal_of_ours_are_told_apart_in_a_span() -> None:
    """Of a request that nothing inside answers."""
    found: list[TraceSpan] = []
    for error in (ValueError("a defect"), Busy("no more")):

        async def app(scope: Scope, receive: Receive, send: Send, error: Exception = error) -> None:
            raise error

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        with tracing.exporting_to(found.append), pytest.raises(type(error)):
            await TraceMiddleware(app)(scope, nobody, nobody)
    assert [span.error for span in found] == ["ValueError", "busy"]


async def nobody(*_: object) -> Any:
    raise AssertionError("nothing is read or sent")


async def test_a_collector_that_is_away_delays_nobody(gateway) -> None:
    with exporting("http://127.0.0.1:9", "shoal", "me"):
        assert (await gateway.chat()).status_code == 200


@pytest.mark.parametrize("sampled", [None, False, True])
async def test_a_hop_measures_its_part_only_where_it_is_exported(
    gateway, monkeypatch: pytest.MonkeyPatch, sampled: bool | None
) -> None:
    noted: list[Step] = []
    monkeypatch.setattr(HopTurn, "note", lambda turn, step, result: noted.append(step))
    with nullcontext() if sampled is None else tracing.exporting_to(lambda span: None):
        answer = await gateway.post(
            "/v1/chat/completions",
            headers={"traceparent": f"{CALLER}-0{sampled is not False:d}"},
            messages=[{"role": "user", "content": "hello"}],
        )
    assert answer.status_code == 200
    assert bool(noted) == bool(sampled)


@contextmanager
def json_lines(name: str) -> Iterator[io.StringIO]:
    """What a part of Shoal logs, as programs read it."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    log = logging.getLogger(name)
    level = log.level
    log.addHandler(handler)
    log.setLevel("INFO")
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
