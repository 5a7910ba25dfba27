"""Batches are answered behind everybody who waits, line by line, and through restarts."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import trio

from shoal.errors import OutOfResources
from shoal.gateway.access.keys import LOCAL, KeyLimits, create, revoke
from shoal.gateway.stored.batches import runner as runner_module
from shoal.gateway.stored.batches.batch import WINDOW_S
from shoal.gateway.stored.batches.in_process import RouteAnswer, asking
from shoal.gateway.stored.batches.lines import LineFault
from shoal.gateway.stored.batches.pace import AT_ONCE
from shoal.gateway.stored.batches.store import HOLD_S

from .stored import CHAT, Routes, batch_of, ended, line, rows, running, said, until


async def test_each_line_is_answered_and_written_in_the_order_of_the_file(store):
    batch = batch_of(store, [line(f"r{n}", n=n) for n in range(9)])
    routes = Routes(200, 400)
    async with running(store, routes):
        done = await ended(store, batch)
    assert (done.status, done.total, store.counts(done)) == ("completed", 9, (8, 1))
    assert sorted(routes.asked) == list(range(9))
    assert all(caller.background for caller in routes.callers)
    assert done.counted == (8, 1)
    before = msgspec.structs.replace(done, counted=None)  # of a version that did not keep it
    other = batch_of(store, [line("other", n=1)])
    assert store.counts_of([before, other]) == {done.id: (8, 1), other.id: (0, 0)}
    good, bad = said(store, done.output_file), said(store, done.error_file)
    assert [one["custom_id"] for one in good] == sorted(one["custom_id"] for one in good)
    assert [one["response"]["status_code"] for one in bad] == [400]
    assert {one["response"]["body"]["said"] for one in (*good, *bad)} == set(range(9))


async def test_lines_have_the_protection_of_their_batch_and_else_that_of_the_key(store, tmp_path):
    careful = replace(LOCAL, protect="audited")
    for kept, given in (("attested", "attested"), (None, "audited")):
        batch = batch_of(store, [line("r", n=0)], protect=kept)
        routes = Routes()
        async with running(store, routes, callers=lambda id: careful):
            await ended(store, batch)
        assert [caller.protect for caller in routes.callers] == [given]


def test_a_batch_of_a_version_that_kept_no_protection_is_read(store):
    batch = batch_of(store, [line("r", n=0)], protect="attested")
    with store.database.transaction() as database:
        (record,) = database.execute("SELECT record FROM batches").fetchone()
        before = {name: value for name, value in json.loads(record).items() if name != "protect"}
        database.execute("UPDATE batches SET record = ?", (json.dumps(before).encode(),))
    assert store.find("local", batch.id) == msgspec.structs.replace(batch, protect=None)


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


async def test_a_batch_that_cannot_be_written_waits_and_stops_no_other(store, days, monkeypatch):
    monkeypatch.setattr(runner_module, "PIECE_LINES", 2)
    monkeypatch.setattr(runner_module, "pause_s", lambda failures, asked_s=0.0: 0.2)
    expired = batch_of(store, [line(f"r{n}", n=n) for n in range(5)])
    days.at += WINDOW_S
    good = batch_of(store, [line("good", n=9)])
    put, tried = store.put, []

    def put_or_not(batch, lines, *, failed):
        lines = list(lines)
        if batch.id == expired.id:
            tried.append(len(lines))
            if len(tried) in (2, 4):
                raise OutOfResources("it takes too long")
        put(batch, lines, failed=failed)

    monkeypatch.setattr(store, "put", put_or_not)
    async with running(store, Routes()):
        done = await ended(store, good)
        assert (done.status, store.find("local", expired.id).status) == ("completed", "in_progress")
        done = await ended(store, expired)
    assert (done.status, store.counts(done), tried) == ("expired", (0, 5), [2, 2, 2, 2, 2, 2, 1])


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


async def test_a_batch_whose_file_goes_ends_once_its_running_lines_are_done(store, monkeypatch):
    monkeypatch.setattr(runner_module, "AT_ONCE", 2)
    batch = batch_of(store, [line(f"r{n}", n=n) for n in range(4)])
    begun, slow = trio.Event(), trio.Event()

    async def ask(path, body, caller):
        if body["n"] == 0:
            begun.set()
            await slow.wait()
        elif body["n"] == 1:
            await begun.wait()  # it was read, before its file goes
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


def test_nothing_is_written_for_a_batch_that_has_ended(store):
    batch = batch_of(store, [line("a", n=1)])
    store.change("local", batch.id, lambda b: b.cancelled(store.clock()))
    store.put(batch, [(1, b"late")], failed=False)
    store.put(batch, [(1, b"late")], failed=True)
    assert rows(store.database, "file_lines") == 1  # the one of its input


async def test_a_batch_of_a_key_that_is_revoked_is_deleted_with_all_it_has_written(store):
    _, key = create(store.database, "ada", KeyLimits(), admin=False)
    batch_of(store, [line(f"r{n}", n=n) for n in range(50)], key.id)
    routes = Routes()
    async with running(store, routes) as runner:
        await until(lambda: routes.asked)
        await trio.to_thread.run_sync(revoke, store.database, "ada")
        runner.look()
        await until(lambda: not runner.unfinished)
    assert [rows(store.database, table) for table in ("batches", "files", "file_lines")] == [0, 0, 0]


async def test_a_batch_stops_at_what_it_may_write(store, monkeypatch):
    monkeypatch.setattr(runner_module, "OUTPUT_BYTES", 10)
    monkeypatch.setattr(runner_module, "AT_ONCE", 1)
    batch = batch_of(store, [line(f"r{n}", n=n) for n in range(3)])
    limits = KeyLimits(concurrency=1)
    async with running(store, Routes(), callers=lambda id: replace(LOCAL, limits=limits)):
        done = await ended(store, batch)
    assert store.counts(done) == (1, 2)
    assert {one["error"]["code"] for one in said(store, done.error_file)} == {"output_too_large"}


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
