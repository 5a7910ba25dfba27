"""Batches: many requests in one file, answered behind everybody who waits, and through restarts."""

from __future__ import annotations

import errno
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import openai
import pytest
import trio

from shoal.gateway.access.keys import LOCAL, Caller, KeyLimits, create, revoke
from shoal.gateway.access.limits import RequestLimiter
from shoal.gateway.errors import LimitReached, NotFound
from shoal.gateway.stored import files as files_module
from shoal.gateway.stored.batches import runner as runner_module
from shoal.gateway.stored.batches import store as store_module
from shoal.gateway.stored.batches.batch import WINDOW_S, StoredBatch
from shoal.gateway.stored.batches.in_process import RouteAnswer, asking
from shoal.gateway.stored.batches.lines import LineFault, check_lines, read_line
from shoal.gateway.stored.batches.pace import AT_ONCE, PATIENCE_S, may_begin, pause_s
from shoal.gateway.stored.batches.runner import BatchRunner
from shoal.gateway.stored.batches.store import HOLD_S, BatchStore
from shoal.gateway.stored.expiry import Keeping
from shoal.gateway.stored.file_routes import FileRoutes
from shoal.gateway.stored.files import FileStore, new_file_id

from .conftest import served, user
from .test_openai import ask
from .test_stored_responses import Days, rows

CHAT = "/v1/chat/completions"


def line(custom_id, url=CHAT, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode() + b"\n"


def test_a_batch_begins_at_once_where_nobody_waits_and_rarely_where_somebody_does():
    assert [may_begin(0, running, 0.0) for running in (0, AT_ONCE - 1, AT_ONCE)] == [True, True, False]
    assert not may_begin(1, 0, PATIENCE_S - 1)
    assert may_begin(1, 0, PATIENCE_S)
    assert not may_begin(1, 1, 10 * PATIENCE_S)


def test_pauses_grow_to_a_minute_and_are_as_long_as_the_refusal_asks_for():
    assert [pause_s(failures) for failures in (1, 2, 3, 50)] == [1.0, 2.0, 4.0, 60.0]
    assert (pause_s(1, 30.0), pause_s(1, 9999.0)) == (30.0, 60.0)


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b'{"custom_id": 1}', "invalid_custom_id", "custom_id"),
        (b'{"custom_id": "a", "method": "GET"}', "invalid_method", "method"),
        (line("a", url="/v1/embeddings"), "invalid_url", "url"),
        (
            b'{"custom_id": "a", "method": "POST", "url": "%s"}' % CHAT.encode(),
            "missing_required_parameter",
            "body",
        ),
    ],
)
def test_a_line_that_is_no_request_is_refused_by_its_field(data, code, param):
    with pytest.raises(LineFault) as caught:
        read_line(data, CHAT)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_faults_of_a_file_are_told_by_their_lines_and_only_so_many():
    given = [(1, line("a")), (2, b"\n"), (3, line("a")), (4, b"x")]
    numbers, errors = check_lines(given, CHAT)
    assert numbers == [1]
    assert [(error.line, error.code) for error in errors] == [
        (3, "duplicate_custom_id"),
        (4, "invalid_json_line"),
    ]
    assert len(check_lines([(n, b"x") for n in range(500)], CHAT)[1]) == 100
    assert [error.code for error in check_lines([(1, b" \n")], CHAT)[1]] == ["empty_file"]


def test_requests_that_nobody_waits_for_have_limits_of_their_own():
    async def go():
        limits = RequestLimiter(running=1, waiting=0)
        key = Caller("key_a", "a", KeyLimits(concurrency=1))
        with limits.admitted(replace(key, background=True)):
            assert limits.awaited == 0
            with pytest.raises(LimitReached), limits.admitted(replace(key, background=True)):
                pass
            with limits.admitted(key):
                assert limits.awaited == 1

    trio.run(go)


def test_what_is_stored_or_read_is_counted_but_keeps_no_batch_waiting():
    async def go():
        limits = RequestLimiter(running=1, waiting=0)
        key = Caller("key_a", "a", KeyLimits(concurrency=1))
        with limits.admitted(key, awaited=False):
            assert limits.awaited == 0
            for other in (key, LOCAL):
                with pytest.raises(LimitReached), limits.admitted(other):
                    pass
        with limits.admitted(key):
            assert limits.awaited == 1
        assert limits.awaited == 0

    trio.run(go)


@pytest.fixture
def days():
    return Days()


@pytest.fixture
def store(tmp_path, days, monkeypatch):
    monkeypatch.setattr(runner_module, "LOOK_EVERY_S", 0.01)
    return BatchStore(FileStore(tmp_path / "gateway.db", Keeping(30, days)))


def batch_of(store, lines, caller="local"):
    file = store.files.add(caller, "in.jsonl", lines, None)
    now = store.clock()
    batch = StoredBatch(
        id=f"batch_{file.id}",
        endpoint=CHAT,
        input_file=file.id,
        output_file=new_file_id(),
        error_file=new_file_id(),
        created=now,
        expires=now + WINDOW_S,
    )
    store.add(caller, batch)
    return batch


class Routes:
    """Answers what a batch asks for, as a test says."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.callers = []

    async def __call__(self, path, body, caller):
        self.asked.append(body["n"])
        self.callers.append(caller)
        await trio.lowlevel.checkpoint()
        status = self.answers.pop(0) if self.answers else 200
        return RouteAnswer(status, "req_1", {"said": body["n"]})


@asynccontextmanager
async def running(store, routes, awaited=lambda: 0, callers=lambda id: LOCAL):
    runner = BatchRunner(store, routes, callers, awaited)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        yield runner
        nursery.cancel_scope.cancel()


async def until(check):
    with trio.fail_after(20):
        while not check():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def ended(store, batch, caller="local"):
    await until(lambda: store.find(caller, batch.id).ended)
    return store.find(caller, batch.id)


def said(store, file):
    return [json.loads(data) for _, data in store.files.lines(file)]


def test_lines_are_read_in_pieces_of_so_many_bytes(store, monkeypatch):
    monkeypatch.setattr(files_module, "PIECE", 10)
    lines = [b"1234", b"5678", b"90", b"x" * 50, b"y" * 10, b"z"]
    file = store.files.add("local", "x", lines, None)
    assert [number for number, _ in store.files.read(file.id, 0)] == [1, 2, 3]
    assert [number for number, _ in store.files.read(file.id, 3)] == [4]
    assert [number for number, _ in store.files.read(file.id, 4)] == [5]
    assert store.files.read(file.id, 6) == []
    assert [data for _, data in store.files.lines(file.id)] == lines
    assert store.files.line(file.id, 4) == b"x" * 50


async def test_each_line_is_answered_and_written_in_the_order_of_the_file(store):
    batch = batch_of(store, [line(f"r{n}", n=n) for n in range(9)])
    routes = Routes(200, 400)
    async with running(store, routes):
        done = await ended(store, batch)
    assert (done.status, done.total, store.counts(done)) == ("completed", 9, (8, 1))
    assert sorted(routes.asked) == list(range(9))
    assert all(caller.background for caller in routes.callers)
    good, bad = said(store, done.output_file), said(store, done.error_file)
    assert [one["custom_id"] for one in good] == sorted(one["custom_id"] for one in good)
    assert [one["response"]["status_code"] for one in bad] == [400]
    assert {one["response"]["body"]["said"] for one in (*good, *bad)} == set(range(9))


async def test_a_defect_that_a_line_has_met_is_the_lines_own_error(store, caplog, monkeypatch):
    batch = batch_of(store, [line("broken", n=0), line("good", n=1), line("unread", n=2)])
    read = runner_module.read_line

    def read_or_not(data, endpoint):
        if b"unread" in data:  # as of one that is nested deeper than this thread's stack has room
            raise LineFault("invalid_json_line", "the line is not JSON")
        return read(data, endpoint)

    monkeypatch.setattr(runner_module, "read_line", read_or_not)

    async def ask(path, body, caller):
        if body["n"] == 0:
            raise RuntimeError("a defect")
        return RouteAnswer(200, "req_1", {})

    async with running(store, ask):
        done = await ended(store, batch)
    assert (done.status, store.counts(done)) == ("completed", (1, 2))
    told = {one["custom_id"]: one["error"]["code"] for one in said(store, done.error_file)}
    assert told == {"broken": "internal_error", "unread": "internal_error"}
    assert caplog.text.count("a defect") >= 2


async def test_a_defect_that_a_batch_has_met_ends_that_batch_alone(store, caplog, monkeypatch):
    broken = batch_of(store, [line("a", n=1)])
    good = batch_of(store, [line("b", n=2)])
    known = store.done

    def done_or_not(batch):
        if batch.id == broken.id:
            raise RuntimeError("a defect")
        return known(batch)

    monkeypatch.setattr(store, "done", done_or_not)
    async with running(store, Routes()):
        failed = await ended(store, broken)
        assert (await ended(store, good)).status == "completed"
    assert (failed.status, [error.code for error in failed.errors]) == ("failed", ["internal_error"])
    assert f"{broken.id}: a defect" in caplog.text


async def test_what_cannot_be_asked_or_read_is_a_defect_of_one_request(caplog):
    async def says_nothing(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    deep = []
    for _ in range(100_000):
        deep = [deep]
    for body in ({}, {"deep": deep}):
        answer = await asking(says_nothing)(CHAT, body, LOCAL)
        assert (answer.status, answer.body["error"]["code"]) == (500, "internal_error")
    assert caplog.text.count("a defect") == 2


async def test_another_gateway_goes_on_where_one_has_ended(store, days):
    batch = batch_of(store, [line(f"r{n}", n=n) for n in range(6)])
    first, second = Routes(), Routes()
    async with running(store, first):
        await until(lambda: sum(store.counts(batch)) >= 2)
    before = store.done(batch)
    async with running(store, second):
        done = await ended(store, batch)
    assert done.status == "completed"
    assert len(second.asked) == 6 - len(before)
    assert [one["custom_id"] for one in said(store, done.output_file)] == [f"r{n}" for n in range(6)]


def test_of_two_gateways_only_one_works_on_a_batch(store, days):
    batch_of(store, [line("a", n=1)])
    assert len(store.hold("one")) == 1
    assert store.hold("two") == []
    days.at += HOLD_S - 1
    assert (len(store.hold("one")), store.hold("two")) == (1, [])
    days.at += HOLD_S + 1
    assert (len(store.hold("two")), store.hold("one")) == (1, [])
    store.release("two")
    assert len(store.hold("one")) == 1


async def test_nothing_begins_while_somebody_waits(store):
    batch = batch_of(store, [line("a", n=1)])
    waiting, looked, routes = 1, 0, Routes()

    def awaited():
        nonlocal looked
        looked += 1
        return waiting

    async with running(store, routes, awaited):
        await until(lambda: looked >= 5)
        assert (routes.asked, store.find("local", batch.id).status) == ([], "in_progress")
        waiting = 0
        await ended(store, batch)
    assert routes.asked == [1]


async def test_keys_take_turns_where_one_line_runs_at_a_time(store, days, monkeypatch):
    monkeypatch.setattr(runner_module, "may_begin", lambda awaited, running, since_s: not running)
    order = []
    first = batch_of(store, [line(f"r{n}", n="a") for n in range(3)], "a")
    days.at += 1
    second = batch_of(store, [line(f"r{n}", n="b") for n in range(3)], "b")

    async def ask(path, body, caller):
        order.append(body["n"])
        return RouteAnswer(200, "req_1", {})

    async with running(store, ask):
        await ended(store, first, "a")
        await ended(store, second, "b")
    assert order == ["a", "b", "a", "b", "a", "b"]


async def test_a_full_swarm_is_asked_again_and_a_node_that_fails_only_so_often(store, monkeypatch):
    monkeypatch.setattr(runner_module, "pause_s", lambda failures, asked_s: 0.0)
    batch = batch_of(store, [line("a", n=1)])
    routes = Routes(503, 429, 503, 429, 503)
    async with running(store, routes):
        done = await ended(store, batch)
    assert (len(routes.asked), store.counts(done)) == (6, (1, 0))
    batch = batch_of(store, [line("b", n=2)])
    routes = Routes(502, 504, 502, 502)
    async with running(store, routes):
        done = await ended(store, batch)
    assert (len(routes.asked), store.counts(done)) == (3, (0, 1))


async def test_what_is_left_when_a_batch_expires_is_told_line_by_line(store, days):
    batch = batch_of(store, [line("a", n=1), line("b", n=2)])
    days.at += WINDOW_S
    routes = Routes()
    async with running(store, routes):
        done = await ended(store, batch)
    assert (done.status, routes.asked) == ("expired", [])
    assert [(one["custom_id"], one["error"]["code"]) for one in said(store, done.error_file)] == [
        ("a", "batch_expired"),
        ("b", "batch_expired"),
    ]
    assert done.shown(0, 2)["expired_at"] == int(days.at)


async def test_a_batch_without_its_file_or_its_key_fails_and_says_why(store, tmp_path):
    batch = batch_of(store, [line("a", n=1)])
    store.files.delete("local", batch.input_file)
    async with running(store, Routes()):
        done = await ended(store, batch)
    assert (done.status, [error.code for error in done.errors]) == ("failed", ["empty_file"])
    batch = batch_of(store, [line("a", n=1)])
    async with running(store, Routes(), callers=lambda id: None):
        done = await ended(store, batch)
    assert [error.code for error in done.errors] == ["key_revoked"]


async def test_a_batch_whose_file_goes_ends_once_its_running_lines_are_done(store, tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "AT_ONCE", 2)
    batch = batch_of(store, [line(f"r{n}", n=n) for n in range(4)])
    slow = trio.Event()

    async def ask(path, body, caller):
        if body["n"] == 0:
            await slow.wait()
        elif body["n"] == 1:
            await trio.to_thread.run_sync(store.files.delete, "local", batch.input_file)
        return RouteAnswer(200, "req_1", {})

    async with running(store, ask) as runner:
        await until(lambda: [work for work in runner._works.values() if work.fault])
        assert not store.find("local", batch.id).ended
        slow.set()
        done = await ended(store, batch)
    assert (done.status, [error.code for error in done.errors]) == ("failed", ["file_gone"])
    assert [one["custom_id"] for one in said(store, done.output_file)] == ["r0", "r1"]
    shown = store.files.find("local", done.output_file)
    assert shown.bytes == sum(len(data) for _, data in store.files.lines(done.output_file))


def test_nothing_is_written_for_a_batch_that_has_ended(store, tmp_path):
    batch = batch_of(store, [line("a", n=1)])
    store.change("local", batch.id, lambda b: b.cancelled(store.clock()))
    store.put(batch, [(1, b"late")], failed=False)
    store.put(batch, [(1, b"late")], failed=True)
    assert rows(tmp_path, "file_lines") == 1  # the one of its input


async def test_a_batch_of_a_key_that_is_revoked_is_deleted_with_all_it_has_written(store, tmp_path):
    path = tmp_path / "gateway.db"
    _, key = create(path, "ada", KeyLimits(), admin=False)
    batch_of(store, [line(f"r{n}", n=n) for n in range(50)], key.id)
    routes = Routes()
    async with running(store, routes) as runner:
        await until(lambda: routes.asked)
        await trio.to_thread.run_sync(revoke, path, "ada")
        runner.look()
        await until(lambda: not runner.unfinished)
    assert [rows(tmp_path, table) for table in ("batches", "files", "file_lines")] == [0, 0, 0]


async def test_a_batch_stops_at_what_it_may_write(store, monkeypatch):
    monkeypatch.setattr(runner_module, "OUTPUT_BYTES", 10)
    monkeypatch.setattr(runner_module, "AT_ONCE", 1)
    batch = batch_of(store, [line(f"r{n}", n=n) for n in range(3)])
    limits = KeyLimits(concurrency=1)
    async with running(store, Routes(), callers=lambda id: replace(LOCAL, limits=limits)):
        done = await ended(store, batch)
    assert store.counts(done) == (1, 2)
    assert {one["error"]["code"] for one in said(store, done.error_file)} == {"output_too_large"}


def test_a_key_has_room_for_so_many_files_batches_and_bytes(store, days, monkeypatch):
    monkeypatch.setattr(store_module, "UNFINISHED", 2)
    monkeypatch.setattr(store_module, "PER_KEY", 2)
    first, _ = batch_of(store, [line("a", n=1)]), batch_of(store, [line("b", n=1)])
    with pytest.raises(LimitReached, match="2 batches that are not finished"):
        batch_of(store, [line("c", n=1)])
    store.change("local", first.id, lambda batch: batch.cancelled(days()))
    batch_of(store, [line("d", n=1)])
    with pytest.raises(NotFound):
        store.find("local", first.id)
    monkeypatch.setattr(files_module, "PER_KEY_BYTES", 100)
    with pytest.raises(LimitReached, match="of 101 bytes"):
        store.files.add("key_a", "x", [b"x" * 101], None)
    assert store.files.list("key_a") == []
    monkeypatch.setattr(files_module, "PER_KEY", 1)
    store.files.add("key_a", "x", [b"x"], None)
    with pytest.raises(LimitReached):
        store.files.add("key_a", "x", [b"x"], None)


def test_files_and_batches_expire(store, days, tmp_path):
    file = store.files.add("local", "x", [b"x\n"], 3600)
    longer = store.files.add("local", "x", [b"x\n"], None)
    batch = batch_of(store, [line("a", n=1)])
    store.change("local", batch.id, lambda b: b.cancelled(days()))
    days.at += 3600
    with pytest.raises(NotFound):
        store.files.find("local", file.id)
    assert store.files.find("local", longer.id)
    days.passes(31)
    store.files.sweep()
    store.sweep()
    assert [rows(tmp_path, table) for table in ("batches", "files", "file_lines")] == [0, 0, 0]


def jsonl(*lines):
    return ("in.jsonl", b"".join(lines))


def finished(client, id):
    """Look at a batch until it has ended."""
    for _ in range(400):
        batch = client.batches.retrieve(id)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        trio.from_thread.run(trio.sleep, 0.05)
    raise AssertionError(batch)


async def test_openais_client_uploads_creates_and_reads_a_batch(gateway):
    def use(client, base):
        good = {"messages": [user("hello")], "max_tokens": 4, **base}
        upload = client.files.create(
            file=jsonl(
                line("good", **good),
                b"\n",
                line("bad", **good | {"max_tokens": -1}),
                line("streamed", **good | {"stream": True}),
            ),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        made = client.batches.create(
            input_file_id=upload.id, endpoint=CHAT, completion_window="24h", metadata={"a": "b"}
        )
        done = finished(client, made.id)
        output = client.files.content(done.output_file_id).text
        errors = client.files.content(done.error_file_id).text
        whole = client.chat.completions.create(**good)
        listed = [batch.id for batch in client.batches.list(limit=1)]
        names = {file.id: file.purpose for file in client.files.list()}
        again = client.files.content(upload.id).content
        return upload, made, done, output, errors, whole, listed, names, again

    upload, made, done, output, errors, whole, listed, names, again = await ask(gateway, use)
    assert (upload.purpose, upload.expires_at - upload.created_at) == ("batch", 3600)
    assert (made.status, done.status, done.metadata) == ("validating", "completed", {"a": "b"})
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 1, 2)
    (answer,) = map(json.loads, output.splitlines())
    assert (answer["custom_id"], answer["error"]) == ("good", None)
    body = answer["response"]["body"]
    assert body["choices"][0]["message"]["content"] == whole.choices[0].message.content
    told = {one["custom_id"]: one["response"] for one in map(json.loads, errors.splitlines())}
    assert {name: response["body"]["error"]["param"] for name, response in told.items()} == {
        "bad": "max_tokens",
        "streamed": "stream",
    }
    assert listed == [made.id]
    purposes = {upload.id: "batch", done.output_file_id: "batch_output", done.error_file_id: "batch_output"}
    assert names == purposes
    assert again.count(b"\n") == 4
    assert gateway.gateway.limits.awaited == 0


async def test_a_batch_outlives_its_gateway(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint) as gateway:

        def begin(client, base):
            asked = {"input": "hello", "max_output_tokens": 3} | base
            lines = [line(f"r{n}", "/v1/responses", **asked) for n in range(2)]
            lines.append(line("r2", "/v1/responses", store=None, **asked))
            upload = client.files.create(file=jsonl(*lines), purpose="batch")
            return client.batches.create(
                input_file_id=upload.id, endpoint="/v1/responses", completion_window="24h"
            ).id

        with gateway.gateway.limits.admitted(LOCAL):  # somebody waits, so nothing of it begins
            id = await ask(gateway, begin)
    async with served(tmp_path, checkpoint) as gateway:
        done = await ask(gateway, lambda client, base: finished(client, id))
        assert (done.status, done.request_counts.completed) == ("completed", 3)
        assert rows(tmp_path) == 0  # its responses do not push out those of conversations


async def test_a_batch_that_is_cancelled_gives_up_what_is_answered_now(store):
    batch = batch_of(store, [line(f"r{n}", n=n) for n in range(9)])
    begun = []

    async def ask(path, body, caller):
        begun.append(body["n"])
        await trio.sleep_forever()

    async with running(store, ask) as runner:
        await until(lambda: len(begun) == AT_ONCE)
        store.change("local", batch.id, lambda b: b.cancelled(store.clock()))
        runner.look()
        done = await ended(store, batch)
    assert (done.status, store.counts(done), len(begun)) == ("cancelled", (0, 0), AT_ONCE)


async def test_a_batch_can_be_cancelled_and_a_bad_file_fails_it(gateway):
    def use(client, base):
        good = line("a", messages=[user("a")], **base)
        upload = client.files.create(file=jsonl(good), purpose="batch")
        asked = {"input_file_id": upload.id, "endpoint": CHAT, "completion_window": "24h"}
        stopped = client.batches.cancel(client.batches.create(**asked).id)
        bad = client.files.create(file=jsonl(good, b"no\n"), purpose="batch")
        failed = client.batches.create(**asked | {"input_file_id": bad.id})
        client.files.delete(upload.id)
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(upload.id)
        return finished(client, stopped.id), finished(client, failed.id)

    with gateway.gateway.limits.admitted(LOCAL):
        stopped, failed = await ask(gateway, use)
    assert stopped.status == "cancelled"
    assert (failed.status, failed.output_file_id) == ("failed", None)
    assert [(error.line, error.code) for error in failed.errors.data] == [(2, "invalid_json_line")]


async def test_another_keys_files_and_batches_are_404(gateway):
    path = gateway.gateway.keys._path
    keys = [create(path, name, KeyLimits(), admin=False)[0] for name in ("ada", "bob")]
    gateway.gateway.keys.refresh()
    ada, bob = ({"authorization": f"Bearer {key}"} for key in keys)
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("a", line("a"))}}
    file = (await gateway.http.post("/v1/files", headers=ada, **upload)).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    batch = (await gateway.http.post("/v1/batches", json=asked, headers=ada)).json()["id"]
    for method, where in (
        ("GET", f"files/{file}"),
        ("GET", f"files/{file}/content"),
        ("DELETE", f"files/{file}"),
        ("GET", f"batches/{batch}"),
        ("POST", f"batches/{batch}/cancel"),
    ):
        answer = await gateway.http.request(method, f"/v1/{where}", headers=bob)
        assert (where, answer.status_code) == (where, 404)
    assert (await gateway.http.post("/v1/batches", json=asked, headers=bob)).status_code == 404
    for where in ("files", "batches"):
        assert (await gateway.http.get(f"/v1/{where}", headers=bob)).json()["data"] == []
        assert (await gateway.http.get(f"/v1/{where}", headers=ada)).json()["data"] != []


FILE = {"file": ("a.jsonl", b"x\n")}


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ({"data": {"purpose": "batch"}, "files": {"other": ("a", b"x")}}, 400, "file"),
        ({"data": {"purpose": "fine-tune"}, "files": FILE}, 400, "purpose"),
        ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"")}}, 400, "file"),
        ({"data": {"purpose": "batch", "file": "text"}, "files": {"x": ("a", b"x")}}, 400, "file"),
        (
            {"data": {"purpose": "batch", "expires_after[seconds]": "3600"}, "files": FILE},
            400,
            "expires_after.anchor",
        ),
        (
            {
                "data": {
                    "purpose": "batch",
                    "expires_after[anchor]": "created_at",
                    "expires_after[seconds]": "60",
                },
                "files": FILE,
            },
            400,
            "expires_after.seconds",
        ),
        ({"data": {f"f{n}": "x" for n in range(20)}, "files": FILE}, 400, None),
        ({"json": {"purpose": "batch"}}, 415, None),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data"}}, 400, None),
        ({"content": b"\x00junk", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, None),
    ],
)
async def test_a_form_that_is_no_upload_is_refused_by_its_field(shared, given, status, param):
    answer = await shared.http.post("/v1/files", **given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_an_upload_may_have_a_name_that_is_no_text(gateway):
    form = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a+2AA-.jsonl"\r\n\r\nx\r\n--x--\r\n'
    )
    kind = "multipart/form-data; boundary=x; charset=utf-7"
    answer = await gateway.http.post("/v1/files", content=form, headers={"content-type": kind})
    assert (answer.status_code, answer.json().get("filename")) == (200, "a?.jsonl")


async def test_a_full_disk_refuses_an_upload(gateway, monkeypatch):
    async def full(self, data):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("starlette.datastructures.UploadFile.write", full)
    answer = await gateway.http.post("/v1/files", data={"purpose": "batch"}, files=FILE)
    assert answer.status_code == 503
    assert "no space left; check that there is room" in answer.json()["error"]["message"]


async def test_an_upload_is_bounded(gateway, monkeypatch):
    monkeypatch.setattr("shoal.gateway.stored.file_routes.MAX_FILE", 1000)
    monkeypatch.setattr("shoal.gateway.stored.file_routes.AROUND", 1000)
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("a", b"x\n" * 2000)}}
    assert (await gateway.http.post("/v1/files", **upload)).status_code == 413
    monkeypatch.setattr(files_module, "MAX_LINES", 3)
    upload["files"] = {"file": ("a", b"x\n" * 4)}
    answer = await gateway.http.post("/v1/files", **upload)
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "file")
    assert (await gateway.http.get("/v1/files")).json()["data"] == []


async def test_an_upload_is_one_of_so_many_of_its_caller_and_of_all(tmp_path, monkeypatch):
    routes = FileRoutes(FileStore(tmp_path / "gateway.db", Keeping(30)), RequestLimiter())
    monkeypatch.setattr("shoal.gateway.stored.file_routes.UPLOADS", 3)
    with routes._under_way("a"), routes._under_way("a"):
        with pytest.raises(LimitReached, match="2 uploads of this key"), routes._under_way("a"):
            pass
        with (
            routes._under_way("b"),
            pytest.raises(LimitReached, match="0 uploads of this key are under way, and 3 of all"),
            routes._under_way("c"),
        ):
            pass
    with routes._under_way("a"):
        assert routes._uploads == {"a": 1}


async def test_what_is_stored_is_read_within_the_limits_of_its_key(gateway, monkeypatch):
    path = gateway.gateway.keys._path
    key, _ = create(path, "ada", KeyLimits(concurrency=1), admin=False)
    gateway.gateway.keys.refresh()
    ada = {"authorization": f"Bearer {key}"}
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("a", line("a"))}}
    file = (await gateway.http.post("/v1/files", headers=ada, **upload)).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    ways = [
        ("GET", "files"),
        ("GET", f"files/{file}"),
        ("GET", f"files/{file}/content"),
        ("POST", "batches"),
        ("GET", "batches"),
        ("GET", "batches/b"),
        ("POST", "batches/b/cancel"),
        ("GET", "responses/r"),
        ("GET", "responses/r/input_items"),
        ("DELETE", "responses/r"),
        ("DELETE", f"files/{file}"),
    ]
    with gateway.gateway.limits.admitted(gateway.gateway.keys.find(key)):
        for method, where in ways:
            answer = await gateway.http.request(method, f"/v1/{where}", headers=ada, json=asked)
            assert (where, answer.status_code) == (where, 429)
    assert (await gateway.http.get(f"/v1/files/{file}/content", headers=ada)).content == line("a")


async def test_only_the_batches_of_the_page_are_counted(gateway, monkeypatch):
    for _ in range(3):
        batch_of(gateway.gateway.batches, [line("a")])
    counts, counted = gateway.gateway.batches.counts, []
    monkeypatch.setattr(
        gateway.gateway.batches, "counts", lambda batch: (counted.append(batch.id), counts(batch))[1]
    )
    page = (await gateway.http.get("/v1/batches?limit=1")).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (counted, True)
    assert len(counted) == 1


async def test_a_gateway_that_keeps_nothing_takes_no_uploads(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint, keeping=Keeping(0)) as gateway:
        answer = await gateway.http.post("/v1/files", data={"purpose": "batch"}, files=FILE)
        asked = {"input_file_id": "x", "endpoint": CHAT, "completion_window": "24h"}
        for refused in (answer, await gateway.http.post("/v1/batches", json=asked)):
            assert refused.status_code == 403
            assert "store_days" in refused.json()["error"]["message"]
