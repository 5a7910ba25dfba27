"""What the tests of what is stored share: a clock, batches, and routes that answer as a test says."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import trio

from shoal.gateway.access.keys import LOCAL
from shoal.gateway.stored.batches.batch import WINDOW_S, StoredBatch
from shoal.gateway.stored.batches.in_process import RouteAnswer
from shoal.gateway.stored.batches.runner import BatchRunner
from shoal.gateway.stored.expiry import DAY_S
from shoal.gateway.stored.files import new_file_id

CHAT = "/v1/chat/completions"


class Days:
    """A clock that stands until a test moves it."""

    def __init__(self):
        self.at = 1e9

    def __call__(self):
        return self.at

    def passes(self, days):
        self.at += days * DAY_S


def rows(database, table="responses"):
    with database.transaction() as found:
        return found.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def line(custom_id, url=CHAT, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode() + b"\n"


def batch_of(store, lines, caller="local", **fields):
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
        **fields,
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
