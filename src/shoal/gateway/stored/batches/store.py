"""Batches in the gateway's database. Every method reads or writes the disk.

A gateway holds the batches that it works on for a while and holds them again before that is over, so that of
several gateways with one database only one works on each, and another goes on when that one has ended.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from shoal.gateway.access.database import open_database
from shoal.gateway.errors import LimitReached, NotFound
from shoal.gateway.stored.batches.batch import StoredBatch
from shoal.gateway.stored.files import FileStore, StoredFile, close_output, open_output, put_line

PER_KEY = 256
"""Batches of one key that are kept; the oldest that have ended make room."""
UNFINISHED = 4
"""Of one key at once."""
OUTPUT_BYTES = 128 << 20
"""What one batch may write."""
HOLD_S = 60.0
RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class HeldBatch:
    """A batch that this gateway works on."""

    caller: str
    batch: StoredBatch


class BatchStore:
    def __init__(self, files: FileStore) -> None:
        self.files = files
        self._path = files.path
        self.clock = files.keeping.clock

    def add(self, caller: str, batch: StoredBatch) -> None:
        """Keep a new batch, and open the files that it writes.

        Raises:
            NotFound: its input file is none of the caller's.
            LimitReached: the caller has too many unfinished ones, or too much in files.
        """
        self.files.find(caller, batch.input_file)
        with open_database(self._path) as database:
            database.execute("BEGIN IMMEDIATE")
            (open_now,) = database.execute(
                "SELECT count(*) FROM batches WHERE caller = ? AND finished IS NULL", (caller,)
            ).fetchone()
            if open_now >= UNFINISHED:
                raise LimitReached(
                    f"this key has {open_now} batches that are not finished",
                    check="wait for one of them, or cancel it: POST /v1/batches/ID/cancel",
                    retry_after_s=RETRY_S,
                )
            self.files.check_room(database, caller)
            for id, kind in ((batch.output_file, "output"), (batch.error_file, "error")):
                name = f"{batch.id}_{kind}.jsonl"
                file = StoredFile(id, name, "batch_output", batch.created, batch.expires, 0)
                open_output(database, caller, file)
            database.execute(
                "INSERT INTO batches (id, caller, created, holder, held_until, record) "
                "VALUES (?, ?, ?, '', 0, ?)",
                (batch.id, caller, batch.created, msgspec.json.encode(batch)),
            )
            database.execute(
                "DELETE FROM batches WHERE finished IS NOT NULL AND id IN (SELECT id FROM batches "
                "WHERE caller = ? ORDER BY created DESC, rowid DESC LIMIT -1 OFFSET ?)",
                (caller, PER_KEY),
            )

    def find(self, caller: str, id: str) -> StoredBatch:
        """The caller's batch of this id.

        Raises:
            NotFound: there is none, or it is another key's: nobody is told which.
        """
        with open_database(self._path) as database:
            return _read(database, caller, id)

    def list(self, caller: str) -> list[StoredBatch]:
        """All of the caller's batches, the oldest first."""
        with open_database(self._path) as database:
            rows = database.execute(
                "SELECT record FROM batches WHERE caller = ? ORDER BY created, rowid", (caller,)
            ).fetchall()
        return [msgspec.json.decode(row[0], type=StoredBatch) for row in rows]

    def change(self, caller: str, id: str, change: Callable[[StoredBatch], StoredBatch]) -> StoredBatch:
        """Put a batch into another state; one that ends shows its files. Raises NotFound as :meth:`find`."""
        with open_database(self._path) as database:
            database.execute("BEGIN IMMEDIATE")
            before = _read(database, caller, id)
            batch = change(before)
            if batch.ended and not before.ended:
                batch = self._close(database, batch)
            database.execute(
                "UPDATE batches SET record = ?, finished = ? WHERE id = ?",
                (msgspec.json.encode(batch), self.clock() if batch.ended else None, id),
            )
        return batch

    def counts(self, batch: StoredBatch) -> tuple[int, int]:
        """How many of its requests were answered, and how many have failed."""
        with open_database(self._path) as database:
            done, failed = (
                database.execute("SELECT count(*) FROM file_lines WHERE file = ?", (file,)).fetchone()[0]
                for file in (batch.output_file, batch.error_file)
            )
        return done, failed

    def done(self, batch: StoredBatch) -> set[int]:
        """The lines of which something came."""
        with open_database(self._path) as database:
            rows = database.execute(
                "SELECT number FROM file_lines WHERE file IN (?, ?)", (batch.output_file, batch.error_file)
            ).fetchall()
        return {number for (number,) in rows}

    def written(self, batch: StoredBatch) -> int:
        """Bytes of all that it has written."""
        with open_database(self._path) as database:
            (size,) = database.execute(
                "SELECT coalesce(sum(length(data)), 0) FROM file_lines WHERE file IN (?, ?)",
                (batch.output_file, batch.error_file),
            ).fetchone()
        return size

    def put(self, batch: StoredBatch, lines: Iterable[tuple[int, bytes]], *, failed: bool) -> None:
        """What came of lines, by their numbers; of a batch that has ended nothing is written any more."""
        with open_database(self._path) as database:
            database.execute("BEGIN IMMEDIATE")
            writing = database.execute(
                "SELECT 1 FROM batches WHERE id = ? AND finished IS NULL", (batch.id,)
            ).fetchone()
            if writing:  # its key may have been revoked meanwhile, or another gateway have ended it
                for number, data in lines:
                    put_line(database, batch.error_file if failed else batch.output_file, number, data)

    def hold(self, holder: str) -> list[HeldBatch]:
        """Every batch that is not finished and that no other gateway holds, the oldest first."""
        now = self.clock()
        with open_database(self._path) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                "UPDATE batches SET holder = ?, held_until = ? "
                "WHERE finished IS NULL AND (holder = ? OR held_until <= ?)",
                (holder, now + HOLD_S, holder, now),
            )
            rows = database.execute(
                "SELECT caller, record FROM batches WHERE finished IS NULL AND holder = ? "
                "ORDER BY created, rowid",
                (holder,),
            ).fetchall()
        return [HeldBatch(row[0], msgspec.json.decode(row[1], type=StoredBatch)) for row in rows]

    def release(self, holder: str) -> None:
        """Let other gateways have them at once."""
        with open_database(self._path) as database:
            database.execute("UPDATE batches SET held_until = 0 WHERE holder = ?", (holder,))

    def sweep(self) -> None:
        """Forget batches that have ended longer ago than anything is kept."""
        oldest = self.clock() - self.files.keeping.longest_s
        with open_database(self._path) as database:
            database.execute("DELETE FROM batches WHERE finished <= ?", (oldest,))

    def _close(self, database: sqlite3.Connection, batch: StoredBatch) -> StoredBatch:
        now, longest = self.clock(), self.files.keeping.longest_s
        expires = now + min(longest, batch.output_kept_s or longest)
        has_output, has_errors = (
            close_output(database, file, now, expires) for file in (batch.output_file, batch.error_file)
        )
        return msgspec.structs.replace(batch, has_output=has_output, has_errors=has_errors)


def _read(database: sqlite3.Connection, caller: str, id: str) -> StoredBatch:
    row = database.execute("SELECT record FROM batches WHERE id = ? AND caller = ?", (id, caller)).fetchone()
    if row is None:
        raise NotFound(
            f"no batch {id[:64]!r} is stored for this key",
            check="that it was made with this key; GET /v1/batches lists those that are kept",
        )
    return msgspec.json.decode(row[0], type=StoredBatch)
