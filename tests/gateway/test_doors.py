"""Who may come in: keys, this machine alone without any, and no page of somebody else's."""

from __future__ import annotations

from functools import partial
from itertools import chain, product

import httpx
import pytest
import trio

from shoal.gateway.access import guard, keys
from shoal.gateway.access.keys import KeyLimits
from shoal.gateway.access.usage import report
from shoal.gateway.api import chat
from shoal.gateway.api.openapi import BODIES, FORMS
from shoal.gateway.page.static import FOLDER
from shoal.models.text.chat_templates import EncodedPrompt

from .conftest import kept_in, served, user


@pytest.fixture
def key(tmp_path):
    """A key that was made before the gateway began."""
    return keys.create(kept_in(tmp_path), "laptop", KeyLimits(), admin=False)[0]


def paths(gateway):
    """Every path that leads anywhere, and what clients may make of it."""
    inner = gateway.gateway.app._app._app.app
    known = [route.path.replace("{id:path}", "x") for route in inner.routes]
    mistyped = [f"{p}/" for p in known] + [f"/{p}" for p in known] + [p.upper() for p in known if p != "/"]
    return known, mistyped


def open_paths():
    """The page's own files, and whether the gateway is well."""
    files = (file.relative_to(FOLDER).as_posix() for file in FOLDER.rglob("*") if file.is_file())
    return {"/", "/health", "/v2/health/live", "/v2/health/ready", *(f"/{file}" for file in files)}


async def test_with_a_key_nothing_but_the_page_and_health_is_open(tmp_path, checkpoint, key):
    async with served(tmp_path, checkpoint) as gateway:
        (known, mistyped), free = paths(gateway), open_paths()
        every = product(("GET", "POST", "OPTIONS", "HEAD", "PUT"), known)
        for method, path in chain(every, product(("GET", "POST"), mistyped)):
            answer = await gateway.http.request(method, gateway.url + path)
            assert answer.status_code == 401 or path in free, (method, path)
        assert (await gateway.http.get("/health")).status_code == 200
        assert (await gateway.http.get("/")).status_code == 200


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_key_opens_either_way(tmp_path, checkpoint, key, header):
    async with served(tmp_path, checkpoint) as gateway:
        value = f"Bearer {key}" if header == "authorization" else key
        assert (await gateway.http.get("/v1/models", headers={header: value})).status_code == 200
        for wrong in (value[:-1], value + "x", "", "Bearer", "Basic abc", "\xff"):
            answer = await gateway.http.get("/v1/models", headers=[(header, wrong.encode("latin1"))])
            assert answer.status_code == 401
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_key_is_kept_as_a_hash_and_ends_when_revoked(tmp_path, checkpoint, key):
    assert key.encode() not in (tmp_path / "gateway.db").read_bytes()
    assert (tmp_path / "gateway.db").stat().st_mode & 0o77 == 0
    keys.create(kept_in(tmp_path), "other", KeyLimits(), admin=False)
    async with served(tmp_path, checkpoint) as gateway:
        headers = {"x-api-key": key}
        assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 200
        keys.revoke(kept_in(tmp_path), "laptop")
        with trio.fail_after(25):
            while (  # noqa: ASYNC110
                await gateway.http.get("/v1/models", headers=headers)
            ).status_code == 200:
                await trio.sleep(0.1)


async def test_without_a_key_only_this_machine_is_served(gateway):
    for caller, status in (("127.0.0.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("192.0.2.7", 401)):
        door = httpx.ASGITransport(app=gateway.gateway.app, client=(caller, 5))
        async with httpx.AsyncClient(transport=door, base_url="http://127.0.0.1") as http:
            assert (await http.get("/v1/models")).status_code == status, caller


async def test_without_a_key_a_proxy_is_not_this_machine(shared):
    assert (await shared.http.get("/v1/models")).status_code == 200
    for header in ("x-forwarded-for", "forwarded", "x-real-ip"):
        assert (await shared.http.get("/v1/models", headers={header: "1.2.3.4"})).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80"])
async def test_a_name_that_was_bound_to_us_by_others_is_refused(shared, host):
    answer = await shared.http.get("/v1/models", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "forbidden"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1"])
async def test_pages_of_others_may_not_call(shared, origin):
    for method in ("GET", "OPTIONS"):
        answer = await shared.http.request(method, "/v1/models", headers={"origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


async def test_our_own_page_and_a_configured_origin_may(tmp_path, checkpoint):
    friend = "https://chat.example.org"
    async with served(tmp_path, checkpoint, origins=(friend,)) as gateway:
        assert (await gateway.http.get("/v1/models", headers={"origin": gateway.url})).status_code == 200
        answer = await gateway.http.get("/v1/models", headers={"origin": friend})
        assert answer.headers["access-control-allow-origin"] == friend
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


PREFLIGHT = "authorization, content-type, openai-organization, openai-project, openai-beta, " + ", ".join(
    f"x-stainless-{name}"
    for name in ("arch", "lang", "os", "package-version", "retry-count", "runtime", "timeout")
)
"""What OpenAI's client for JavaScript sends from a browser."""


async def test_a_preflight_allows_what_it_asks_for_to_an_allowed_origin_alone(tmp_path, checkpoint):
    friend = "https://chat.example.org"
    path = "/v1/chat/completions"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": PREFLIGHT}
    async with served(tmp_path, checkpoint, origins=(friend,)) as gateway:
        passed = await gateway.http.options(path, headers={"origin": friend} | asked)
        assert passed.status_code == 204
        assert set(passed.headers["access-control-allow-headers"].split(", ")) == set(PREFLIGHT.split(", "))
        assert "POST" in passed.headers["access-control-allow-methods"]
        assert "access-control-allow-private-network" not in passed.headers
        home = {"origin": friend, "access-control-request-private-network": "true"} | asked
        answered = await gateway.http.options(path, headers=home)
        assert answered.headers["access-control-allow-private-network"] == "true"
        for odd in ("x" * 5000, "a b", "x\ty", "ü", ",,", "*;"):
            headers = {"origin": friend} | asked | {"access-control-request-headers": odd.encode("latin1")}
            refused = (await gateway.http.options(path, headers=headers)).headers
            assert refused["access-control-allow-headers"] == guard.CORS_HEADERS
        other = await gateway.http.options(path, headers={"origin": "https://evil.example"} | asked)
        assert other.status_code == 403
        assert "access-control-allow-headers" not in other.headers


BROWSER = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}


async def test_a_program_with_a_key_may_call_us_by_any_name(tmp_path, checkpoint, key):
    """Names of a compose file, of a proxy, of the host: no page can make a browser send such a key."""
    async with served(tmp_path, checkpoint) as gateway:
        for host in ("shoal:4480", "host.docker.internal", "10.1.2.3:80", "evil.example", "", "[::1", "a b"):
            for sent, status in (({"x-api-key": key}, 200), ({"x-api-key": "wrong"}, 401), ({}, 401)):
                answer = await gateway.http.get("/v1/models", headers=sent | {"host": host})
                if not sent and host != "10.1.2.3:80":
                    status = 400 if host in ("[::1", "a b") else 403  # noqa: PLW2901  it is no name at all
                assert answer.status_code == status, (host, sent)
        node = {"x-api-key": key, "host": "shoal:4480", "sec-fetch-mode": "cors"}  # as fetch of Node sends it
        assert (await gateway.http.get("/v1/models", headers=node)).status_code == 200


async def test_a_browser_must_know_us_by_a_name_of_ours_also_with_a_key(tmp_path, checkpoint, key):
    async with served(tmp_path, checkpoint) as gateway:
        for marks in (BROWSER, {"origin": "http://evil.example"}, {"sec-fetch-dest": "document"}):
            for path in ("/v1/models", "/health", "/"):
                headers = {"x-api-key": key, "host": "evil.example"} | marks
                answer = await gateway.http.get(path, headers=headers)
                assert answer.status_code == 403, (marks, path)
        ours = {"x-api-key": key} | BROWSER
        assert (await gateway.http.get("/v1/models", headers=ours)).status_code == 200


async def test_a_health_check_of_http_1_0_needs_no_host(shared):
    for lines, status in (
        (["GET /health HTTP/1.0"], b"200"),
        (["GET /v1/models HTTP/1.0"], b"200"),
        (["GET /health HTTP/1.0", "Host: evil.example"], b"403"),
        (["GET /health HTTP/1.0", "Sec-Fetch-Site: cross-site"], b"403"),
        (["GET /health HTTP/1.0", "Origin: null"], b"403"),
    ):
        async with await trio.open_tcp_stream("127.0.0.1", httpx.URL(shared.url).port) as stream:
            with trio.fail_after(25):
                await stream.send_all("\r\n".join([*lines, "", ""]).encode())
                answer = b"".join([piece async for piece in stream])
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split(b" ")[1] == status, lines
        assert b"connection: close" in head.lower()
        assert body


async def test_a_key_has_limits_and_its_use_is_counted(tmp_path, checkpoint):
    limits = KeyLimits(requests_per_minute=2, tokens_per_minute=0, concurrency=1)
    key, caller = keys.create(kept_in(tmp_path), "guest", limits, admin=False)
    async with served(tmp_path, checkpoint) as gateway:
        headers = {"x-api-key": key}
        answers = [await gateway.chat(headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        tokens = answers[0].json()["usage"]
    used = {account.caller: use for account, use in report(kept_in(tmp_path))}[caller.id]
    assert used.requests == 2
    assert used.prompt_tokens == 2 * tokens["prompt_tokens"]


async def test_tokens_a_minute_are_paid_afterwards(tmp_path, checkpoint):
    key, _ = keys.create(kept_in(tmp_path), "guest", KeyLimits(tokens_per_minute=5), admin=False)
    async with served(tmp_path, checkpoint) as gateway:
        statuses = [(await gateway.chat(headers={"x-api-key": key})).status_code for _ in range(2)]
    assert statuses == [200, 429]


async def test_who_is_beyond_a_limit_is_sent_away_before_anything_is_done_for_it(
    tmp_path, checkpoint, monkeypatch
):
    key, _ = keys.create(kept_in(tmp_path), "guest", KeyLimits(concurrency=1), admin=False)
    began, may_go_on, prompts = trio.Event(), trio.Event(), []

    async def slow(model, given, **_):
        prompts.append(given)
        began.set()
        await may_go_on.wait()
        return EncodedPrompt("abc", [1, 2, 3])

    monkeypatch.setattr(chat, "encoded", slow)
    async with served(tmp_path, checkpoint) as gateway, trio.open_nursery() as nursery:
        headers = {"x-api-key": key}
        nursery.start_soon(partial(gateway.chat, headers=headers))
        with trio.fail_after(10):
            await began.wait()
            assert (await gateway.chat(headers=headers)).status_code == 429
            may_go_on.set()
    assert len(prompts) == 1


async def test_who_is_beyond_a_limit_is_sent_away_on_every_route_before_its_body_is_read(
    tmp_path, checkpoint
):
    limits = KeyLimits(requests_per_minute=1, tokens_per_minute=0, concurrency=0)
    key, _ = keys.create(kept_in(tmp_path), "guest", limits, admin=True)
    async with served(tmp_path, checkpoint) as gateway:
        statuses = {}
        for path in ("/tokenize", *BODIES, *FORMS):
            answer = await gateway.http.post(path, content=b"{", headers={"x-api-key": key})
            statuses[path] = [*statuses.get(path, []), answer.status_code]
    assert statuses.pop("/tokenize") == [400, 429]
    assert all(told == [429] for told in statuses.values()), statuses


async def test_a_body_that_is_on_its_way_is_one_of_the_requests_at_once(tmp_path, checkpoint):
    key, _ = keys.create(kept_in(tmp_path), "guest", KeyLimits(concurrency=1), admin=False)
    begun, over = trio.Event(), trio.Event()

    async def slow():
        yield b"{"
        begun.set()
        await over.wait()

    async with served(tmp_path, checkpoint) as gateway, trio.open_nursery() as nursery:
        headers = {"x-api-key": key}
        post = partial(gateway.http.post, "/tokenize", headers=headers)
        nursery.start_soon(partial(post, content=slow()))
        with trio.fail_after(10):
            await begun.wait()
            while not gateway.gateway.limits.awaited:  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert (await post(content=b"{")).status_code == 429
        over.set()


async def test_an_invite_is_shown_to_this_machine_and_administrators(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint) as gateway:
        shown = (await gateway.http.get("/api/invite")).json()
        assert shown["command"] == f"shoal join {shown['code']} && shoal up --model {gateway.model}"
        assert shown["here_only"] is False
        assert shown["qr_svg"].startswith("<svg")
    guest, _ = keys.create(kept_in(tmp_path), "guest", KeyLimits(), admin=False)
    admin, _ = keys.create(kept_in(tmp_path), "me", KeyLimits(), admin=True)
    async with served(tmp_path, checkpoint) as gateway:
        asked = [await gateway.http.get("/api/invite", headers={"x-api-key": key}) for key in (guest, admin)]
        assert [answer.status_code for answer in asked] == [403, 200]


async def test_kept_sessions_are_not_shared_between_keys(tmp_path, checkpoint):
    pair = [keys.create(kept_in(tmp_path), name, KeyLimits(), admin=False)[0] for name in ("a", "b")]
    messages = [user("a secret that is long enough to be worth keeping")]
    async with served(tmp_path, checkpoint) as gateway:
        cached = []
        for key in (pair[0], pair[1], pair[0]):
            answer = await gateway.post("/v1/chat/completions", messages=messages, headers={"x-api-key": key})
            cached.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[:2] == [0, 0]
    assert cached[2] > 0
