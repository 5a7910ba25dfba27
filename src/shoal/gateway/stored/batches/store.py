"""Batches in the gateway's database. Every method reads or writes the disk.

A gateway holds the batches that it works on for a while and holds them again before that is over, so that of
several gateways with one database only one works on each, and another goes on when that one has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from shoal.gateway.database.database import Transaction
from shoal.gateway.database.forgetting import check_good, drop_rows
from shoal.gateway.errors import LimitReached, NotFound
from shoal.gateway.stored.batches.batch import StoredBatch
from shoal.gateway.stored.files import FileStore, StoredFile, close_output, files_lock, open_output, put_lines

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
        self.database = files.database
        self.clock = files.keeping.clock

    def add(self, caller: str, batch: StoredBatch) -> None:
        """Keep a new batch, and open the files that it writes.

        Raises:
            NotFound: its input file is none of the caller's.
            LimitReached: the caller has too many unfinished ones, or too much in files.
            Unauthorized: its key was revoked meanwhile.
        """
        self.files.find(caller, batch.input_file)
        with self.database.transaction(files_lock(caller)) as database:
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
            check_good(database, caller)
            for id, kind in ((batch.output_file, "output"), (batch.error_file, "error")):
                name = f"{batch.id}_{kind}.jsonl"
                file = StoredFile(id, name, "batch_output", batch.created, batch.expires, 0)
                open_output(database, caller, file)
            database.execute(
                "INSERT INTO batches (number, id, caller, created, holder, held_until, record) VALUES "
                "((SELECT coalesce(max(number), 0) + 1 FROM batches WHERE caller = ?), ?, ?, ?, '', 0, ?)",
                (caller, batch.id, caller, batch.created, msgspec.json.encode(batch)),
            )
            database.execute(
                "DELETE FROM batches WHERE finished IS NOT NULL AND id IN (SELECT id FROM batches "
                "WHERE caller = ? ORDER BY created DESC, number DESC LIMIT ? OFFSET ?)",
                (caller, PER_KEY, PER_KEY),
            )

    def find(self, caller: str, id: str) -> StoredBatch:
        """The caller's batch of this id.

        Raises:
            NotFound: there is none, or it is another key's: nobody is told which.
        """
        with self.database.transaction() as found:
            return _read(found, caller, id)

    def list(self, caller: str) -> list[StoredBatch]:
        """All of the caller's batches, the oldest first."""
        with self.database.transaction() as found:
            rows = found.execute(
                "SELECT record FROM batches WHERE caller = ? ORDER BY created, number", (caller,)
            ).fetchall()
        return [msgspec.json.decode(row[0], type=StoredBatch) for row in rows]

    def change(self, caller: str, id: str, change: Callable[[StoredBatch], StoredBatch]) -> StoredBatch:
        """Put a batch into another state; one that ends shows its files. Raises NotFound as :meth:`find`."""
        with self.database.transaction(_lock(id)) as database:
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
        return self.counts_of([batch])[batch.id]

    def counts_of(self, batches: Sequence[StoredBatch]) -> dict[str, tuple[int, int]]:
        """The same of several, by their ids. One question, of those that have not ended."""
        files = [
            f for batch in batches if batch.counted is None for f in (batch.output_file, batch.error_file)
        ]
        lines = dict[str, int]()
        if files:
            with self.database.transaction() as found:
                lines = _count_lines(found, files)
        return {
            batch.id: batch.counted or (lines.get(batch.output_file, 0), lines.get(batch.error_file, 0))
            for batch in batches
        }

    def done(self, batch: StoredBatch) -> set[int]:
        """The lines of which something came."""
        with self.database.transaction() as found:
            rows = found.execute(
                "SELECT number FROM file_lines WHERE file IN (?, ?)", (batch.output_file, batch.error_file)
            ).fetchall()
        return {number for (number,) in rows}

    def written(self, batch: StoredBatch) -> int:
        """Bytes of all that it has written."""
        with self.database.transaction() as found:
            (size,) = found.execute(
                "SELECT CAST(coalesce(sum(length(data)), 0) AS BIGINT) FROM file_lines WHERE file IN (?, ?)",
                (batch.output_file, batch.error_file),
            ).fetchone()
        return size

    def put(self, batch: StoredBatch, lines: Iterable[tuple[int, bytes]], *, failed: bool) -> None:
        """What came of lines, by their numbers; of a batch that has ended nothing is written any more."""
        with self.database.transaction(_lock(batch.id)) as changes:
            # Its key may have been revoked meanwhile, or another gateway have ended it. A row that is changed
            # here is not deleted before its lines are there to be deleted with it.
            writing = changes.execute(
                "UPDATE batches SET holder = holder WHERE id = ? AND finished IS NULL", (batch.id,)
            )
            if writing.rowcount:
                put_lines(changes, batch.error_file if failed else batch.output_file, lines)

    def hold(self, holder: str) -> list[HeldBatch]:
        """Every batch that is not finished and that no other gateway holds, the oldest first."""
        now = self.clock()
        with self.database.transaction("batches") as database:
            database.execute(
                "UPDATE batches SET holder = ?, held_until = ? "
                "WHERE finished IS NULL AND (holder = ? OR held_until <= ?)",
                (holder, now + HOLD_S, holder, now),
            )
            rows = database.execute(
                "SELECT caller, record FROM batches WHERE finished IS NULL AND holder = ? "
                "ORDER BY created, number",
                (holder,),
            ).fetchall()
        return [HeldBatch(row[0], msgspec.json.decode(row[1], type=StoredBatch)) for row in rows]

    def release(self, holder: str) -> None:
        """Let other gateways have them at once."""
        with self.database.transaction() as changes:
            changes.execute("UPDATE batches SET held_until = 0 WHERE holder = ?", (holder,))

    def sweep(self) -> bool:
        """Forget some batches that have ended longer ago than anything is kept; says if there may be more."""
        oldest = self.clock() - self.files.keeping.longest_s
        return drop_rows(self.database, "batches", "finished <= ?", (oldest,))

    def _close(self, database: Transaction, batch: StoredBatch) -> StoredBatch:
        now, longest = self.clock(), self.files.keeping.longest_s
        expires = now + min(longest, batch.output_kept_s or longest)
        lines = _count_lines(database, (batch.output_file, batch.error_file))
        counted = lines.get(batch.output_file, 0), lines.get(batch.error_file, 0)
        has_output, has_errors = (
            close_output(database, file, now, expires) for file in (batch.output_file, batch.error_file)
        )
        return msgspec.structs.replace(batch, has_output=has_output, has_errors=has_errors, counted=counted)


def _count_lines(database: Transaction, files: Sequence[str]) -> dict[str, int]:
    """Lines of each file that has any."""
    places = ", ".join("?" for _ in files)
    return dict(
        database.execute(
            f"SELECT file, count(*) FROM file_lines WHERE file IN ({places}) GROUP BY file", files
        ).fetchall()
    )


def _lock(id: str) -> str:
    """Held by who changes a batch, or writes what came of it."""
    return f"batch {id}"


def _read(database: Transaction, caller: str, id: str) -> StoredBatch:
    row = database.execute("SELECT record FROM batches WHERE id = ? AND caller = ?", (id, caller)).fetchone()
    if row is None:
        raise NotFound(
            f"no batch {id[:64]!r} is stored for this key",
            check="that it was made with this key; GET /v1/batches lists those that are kept",
        )
    return msgspec.json.decode(row[0], type=StoredBatch)
