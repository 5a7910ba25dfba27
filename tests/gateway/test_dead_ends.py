"""Where no route leads: OpenAI's error body there too, on a connection that stays or says that it closes."""

from __future__ import annotations

import json

import h11
import httpx
import pytest
import trio

from shoal.gateway import unread

from .conftest import user

CHAT = "/v1/chat/completions"
FIELDS = {"message", "type", "param", "code"}


ROUTES = {"GET", "HEAD"}
DEAD_ENDS = [
    ("POST", "/v1/nothing", 404, None),
    ("GET", "/v1/chat/completions/", 404, None),
    ("GET", "/V1/models", 404, None),
    ("PUT", "/%2e%2e/etc", 404, None),
    ("OPTIONS", CHAT, 405, {"POST"}),
    ("OPTIONS", "/v1/models", 405, ROUTES),
    ("GET", "/v1/responses", 405, {"POST"}),
    ("DELETE", "/v1/models/x", 405, ROUTES),
    ("PATCH", "/health", 405, ROUTES),
    ("POST", "/", 405, ROUTES),
    ("TRACE", "/api/swarm", 405, ROUTES),
    ("BREW", "/tokenize", 405, {"POST"}),
]
OTHER_KINDS = [
    {"content-type": "text/plain"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"content-type": "application/json; charset=utf-16"},
    {"content-type": "application/json", "content-encoding": "gzip"},
]


async def test_no_route_and_no_method_are_errors_of_the_api(shared):
    for method, path, status, allow in DEAD_ENDS:
        answer = await shared.http.request(method, path)
        assert answer.status_code == status, (method, path)
        assert set(answer.json()["error"]) == FIELDS
        assert answer.headers["x-request-id"].startswith("req_")
        found = answer.headers.get("allow")
        assert (set(found.split(", ")) if found else None) == allow


async def test_a_body_that_says_it_is_no_json_is_a_415(shared):
    for path in (CHAT, "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"):
        for headers in OTHER_KINDS:
            answer = await shared.http.post(path, content=b"{}", headers=headers)
            assert answer.status_code == 415, (path, headers)
            assert answer.json()["error"]["code"] == "unsupported_media_type"


async def test_json_may_be_called_json(shared):
    body = json.dumps({"model": shared.model, "messages": [user("a")], "max_tokens": 1}).encode()
    curls = "application/x-www-form-urlencoded"  # what `curl -d` says unless it is told
    kinds = (None, "application/json", "Application/JSON; charset=UTF-8", "application/vnd.api+json", curls)
    for kind in kinds:
        headers = {"content-type": kind} if kind else None
        assert (await shared.http.post(CHAT, content=body, headers=headers)).status_code == 200, kind


async def test_a_websocket_is_refused_in_the_same_words(shared):
    asked = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    asked["sec-websocket-key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    answer = await shared.http.get("/v1/realtime", headers=asked)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == FIELDS


class Wire:
    """One connection, on which bytes are sent when the test says so."""

    def __init__(self, stream):
        self.stream = stream
        self.state = h11.Connection(h11.CLIENT)

    async def send(self, *events):
        for event in events:
            await self.stream.send_all(self.state.send(event))

    async def answer(self):
        """The head of the answer, once all of it has come."""
        head = None
        while True:
            event = self.state.next_event()
            if event is h11.NEED_DATA:
                self.state.receive_data(await self.stream.receive_some())
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.EndOfMessage):
                return head.status_code, dict(head.headers)


@pytest.fixture
async def wire(gateway):
    async with await trio.open_tcp_stream("127.0.0.1", httpx.URL(gateway.url).port) as stream:
        with trio.fail_after(10):
            yield Wire(stream)


async def post(wire, path, body, *, length=None, wait=0.05, **headers):
    """A POST as most clients send it: the body behind the headers, in a packet of its own."""
    fields = {"host": "localhost", "content-length": str(len(body) if length is None else length)} | headers
    await wire.send(h11.Request(method="POST", target=path, headers=list(fields.items())))
    await trio.sleep(wait)
    await wire.send(h11.Data(data=body))


async def test_a_connection_outlives_an_answer_for_which_the_body_was_not_needed(wire):
    for path, headers, status in (
        ("/v1/nothing", {}, 404),
        ("/health", {}, 405),
        (CHAT, {"content-type": "text/plain"}, 415),
        (CHAT, {"host": "evil.example"}, 403),
    ):
        await post(wire, path, b"x" * 5000, **headers)
        await wire.send(h11.EndOfMessage())
        told, fields = await wire.answer()
        assert told == status
        assert b"connection" not in fields
        wire.state.start_next_cycle()


async def test_a_connection_whose_body_is_too_long_to_be_read_is_closed_and_says_so(wire, monkeypatch):
    monkeypatch.setattr(unread, "DRAIN", 10_000)
    await post(wire, "/v1/nothing", b"x" * 50_000, length=10**6)
    told, fields = await wire.answer()
    assert (told, fields[b"connection"]) == (404, b"close")


async def test_a_connection_whose_body_does_not_come_is_closed_and_says_so(wire, monkeypatch):
    monkeypatch.setattr(unread, "DRAIN_WITHIN_S", 0.2)
    await post(wire, "/v1/nothing", b"x", length=100)
    told, fields = await wire.answer()
    assert (told, fields[b"connection"]) == (404, b"close")


async def test_a_page_that_listens_is_answered_at_once(wire):
    """It reads on, for the end of the connection, while its answer begins."""
    started = trio.current_time()
    await wire.send(h11.Request(method="GET", target="/api/events", headers=[("host", "localhost")]))
    await wire.send(h11.EndOfMessage())
    while not isinstance(event := wire.state.next_event(), h11.Response):
        wire.state.receive_data(await wire.stream.receive_some())
    assert event.status_code == 200
    assert trio.current_time() - started < unread.DRAIN_WITHIN_S
