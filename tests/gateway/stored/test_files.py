"""Files of requests: how they are read, how many a key may have, and until when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.errors import OutOfResources
from shoal.gateway.access.keys import KeyLimits, create, list_keys, revoke
from shoal.gateway.database import forgetting
from shoal.gateway.errors import LimitReached, NotFound, Unauthorized
from shoal.gateway.stored import files as files_module
from shoal.gateway.stored.batches import store as store_module
from shoal.gateway.stored.batches.batch import StoredBatch
from shoal.gateway.stored.files import FileStore
from shoal.gateway.stored.responses import ResponseStore, StoredResponse

from ..conftest import served
from .stored import CHAT, batch_of, line, rows, until


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


def test_files_and_batches_expire(store, days):
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
    assert [rows(store.database, table) for table in ("batches", "files", "file_lines")] == [0, 0, 0]


def fails_after(database, monkeypatch, times):
    """Let so many transactions succeed, and none after them."""
    begin, left = database.transaction, [times]

    def transaction(lock=None):
        if not left[0]:
            raise OutOfResources("away")
        left[0] -= 1
        return begin(lock)

    monkeypatch.setattr(database, "transaction", transaction)


def test_a_key_with_more_than_can_be_deleted_at_once_is_revoked_and_the_rest_deleted_later(
    store, monkeypatch, caplog
):
    monkeypatch.setattr(forgetting, "LINES_AT_ONCE", 3)
    _, key = create(store.database, "ada", KeyLimits(), admin=False)
    store.files.add(key.id, "x", [b"x\n"] * 10, None)
    store.files.add("key_other", "x", [b"x\n"] * 10, None)
    with monkeypatch.context() as patched:
        fails_after(
            store.database, patched, 7
        )  # keys, the revocation, batches, files, and of a file two pieces
        revoke(store.database, "ada")
    assert [record.revoked is not None for record in list_keys(store.database)] == [True]
    assert "deleted later" in caplog.text
    assert rows(store.database, "file_lines") == 14
    while forgetting.forget_revoked(store.database):
        pass
    assert [rows(store.database, table) for table in ("files", "file_lines")] == [1, 10]


def test_nothing_is_kept_for_a_key_that_was_revoked_meanwhile(store):
    _, key = create(store.database, "ada", KeyLimits(), admin=False)
    responses = ResponseStore(store.database, store.files.keeping)
    turn = StoredResponse("r", None, [], {})

    def lines():
        yield b"x\n"
        yield b"x\n"

    file = store.files.add(key.id, "x", lines(), None)
    batch = StoredBatch(
        id="b",
        endpoint=CHAT,
        input_file=file.id,
        output_file="o",
        error_file="e",
        created=store.clock(),
        expires=store.clock() + 1,
    )
    assert responses.save(key.id, turn)
    with store.database.transaction() as changes:
        changes.execute("UPDATE keys SET revoked = 1")
    for write in (
        lambda: store.files.add(key.id, "x", lines(), None),
        lambda: store.add(key.id, batch),
        lambda: responses.save(key.id, replace(turn, id="s")),
    ):
        with pytest.raises(Unauthorized, match="was revoked"):
            write()
    assert [rows(store.database, table) for table in ("batches", "files", "responses")] == [0, 1, 1]


def test_what_has_expired_is_deleted_in_pieces_and_what_is_deleted_is_hidden_at_once(
    store, days, monkeypatch
):
    monkeypatch.setattr(forgetting, "LINES_AT_ONCE", 3)
    monkeypatch.setattr(forgetting, "FILES_AT_ONCE", 1)
    deleted, _expired, kept = (
        store.files.add("local", "x", [b"x\n"] * 10, seconds) for seconds in (None, 3600, None)
    )
    with monkeypatch.context() as patched:
        fails_after(store.database, patched, 3)
        store.files.delete("local", deleted.id)
    assert rows(store.database, "file_lines") == 27
    with pytest.raises(NotFound):
        store.files.delete("local", deleted.id)
    days.at += 3600
    assert [file.id for file in store.files.list("local")] == [kept.id]
    assert [store.files.sweep() for _ in range(3)] == [True, True, False]
    assert rows(store.database, "file_lines") == 10
    assert store.files.find("local", kept.id)


async def test_what_one_store_cannot_delete_keeps_no_other_from_it(tmp_path, checkpoint, monkeypatch, caplog):
    swept = []

    def away(store):
        raise OutOfResources("away")

    def sweep(store):
        swept.append(store)

    monkeypatch.setattr(ResponseStore, "sweep", away)
    monkeypatch.setattr(FileStore, "sweep", sweep)
    async with served(tmp_path, checkpoint, ready=False):
        await until(lambda: swept)
    assert "what has expired cannot be deleted: away" in caplog.text
