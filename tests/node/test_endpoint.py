"""A node's figures over HTTP: for this machine alone, within deadlines and bounds."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from shoal.cli.status.trace import Traces
from shoal.node import endpoint as endpoint_module
from shoal.node.endpoint import EndpointPage, show
from shoal.node.figures import pages
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Span

PAGES = {
    "/metrics": EndpointPage(lambda: b"shoal_sessions 1\n", "text/plain"),
    "/trace": EndpointPage(lambda: b"{}", "application/json", local=True),
}


@asynccontextmanager
async def shown(listening: str = "127.0.0.1", what=PAGES) -> AsyncGenerator[int]:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(show, what, listening, 0)
        assert url.startswith(f"http://{listening}:")
        yield int(url.rpartition(":")[2])
        nursery.cancel_scope.cancel()


async def ask(port: int, request: bytes) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        heard = b""
        with trio.fail_after(15):
            await stream.send_all(request)
            while part := await stream.receive_some():
                heard += part
        return heard


def get(path: str, host: str = "127.0.0.1:9") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def test_a_page_is_answered_and_the_connection_ends() -> None:
    async with shown() as port:
        head, _, body = (await ask(port, get("/metrics?x=1"))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"content-type: text/plain" in head.lower()
        assert body == b"shoal_sessions 1\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/nothing"), 404),
        (get("/../../etc/passwd"), 404),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 9_000, 431),
        (get("/metrics", "evil.example:80"), 403),
        (get("/trace", "127.0.0.1.evil.example"), 403),
        (get("/trace", "localhost"), 200),
        (get("/trace", "[::1]:80"), 200),
    ],
)
async def test_anything_else_is_refused_by_its_status(request_bytes: bytes, status: int) -> None:
    async with shown() as port:
        assert (await ask(port, request_bytes)).startswith(f"HTTP/1.1 {status} ".encode())
        assert (await ask(port, get("/metrics"))).startswith(b"HTTP/1.1 200")


async def test_who_says_nothing_is_hung_up_on_and_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "ANSWERED_WITHIN_S", 0.2)
    async with shown() as port:
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(endpoint_module.AT_ONCE)]
        await trio.sleep(0.05)
        assert await ask(port, get("/metrics")) == b""  # there is no place left
        await trio.sleep(0.3)
        assert (await ask(port, get("/metrics"))).startswith(b"HTTP/1.1 200")
        for stream in silent:
            await stream.aclose()


async def test_on_another_interface_only_what_is_meant_for_others_is_shown() -> None:
    async with shown("0.0.0.0") as port:  # reached over loopback, so everything is
        assert (await ask(port, get("/trace"))).startswith(b"HTTP/1.1 200")
    outward = next((a for a in endpoint_addresses() if not a.startswith("127.")), None)
    if outward is None:
        pytest.skip("this machine has no other interface")
    async with shown(outward) as port:
        for path, status in (("/metrics", b"200"), ("/trace", b"403")):
            stream = await trio.open_tcp_stream(outward, port)
            await stream.send_all(get(path, "anything"))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 " + status)
            await stream.aclose()


def endpoint_addresses() -> list[str]:
    from shoal.net.addresses import expand

    return [address.split("/")[2] for address in expand("0.0.0.0", 1)]


async def test_a_node_shows_what_it_serves_and_what_passed(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "llama", "llama")
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [Span(0, 4), Span(4, 6)]) as swarm,
        swarm.client.session(str(checkpoint), tokens=32) as session,
        shown(what=pages(swarm.nodes[1])) as port,
    ):
        await session.step([1, 2, 3])
        await session.step([4])
        text = (await ask(port, get("/metrics"))).partition(b"\r\n\r\n")[2].decode()
        traced = (await ask(port, get("/trace"))).partition(b"\r\n\r\n")[2]
    samples = {
        (s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }
    assert samples["shoal_sessions",] == 1
    assert samples["shoal_peers",] == 2
    runner = next(
        s for f in text_string_to_metric_families(text) for s in f.samples if s.name == "shoal_runner"
    )
    assert runner.labels == {
        **{"format": "fp32", "batch": "no", "roll_back": "yes"},
        **{"exact": "yes", "stateless": "no", "boundary": "no", "trains": "yes"},
    }
    assert samples["shoal_kv_tokens", "used"] == 16  # what its steps have needed, not what it may grow to
    assert samples["shoal_steps_total", "decode"] == 1
    assert samples["shoal_bytes_total", "in"] > 4 * 64 * 4
    assert samples["shoal_queue_steps",] == 0
    coverage = [value for (name, *_), value in samples.items() if name == "shoal_coverage"]
    assert coverage == [1] * 6
    traces = msgspec.json.decode(traced, type=Traces)
    assert [(step.position, step.tokens, len(step.hops)) for step in traces.node.steps] == [
        (0, 3, 1),
        (3, 1, 1),
    ]
    assert traces.node.steps[0].hops[0].span == "4:6"
