"""Files of requests: how they are read, how many a key may have, and until when."""

from __future__ import annotations

import pytest

from shoal.gateway.errors import LimitReached, NotFound
from shoal.gateway.stored import files as files_module
from shoal.gateway.stored.batches import store as store_module

from .stored import batch_of, line, rows


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
