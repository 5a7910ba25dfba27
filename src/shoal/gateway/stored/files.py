"""Files of callers: what a batch reads, and what it has written. Kept line by line, bounded for each key.

Every method reads or writes the disk.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from shoal.gateway.access.database import open_database
from shoal.gateway.errors import BodyTooLarge, LimitReached, NotFound
from shoal.gateway.stored.expiry import Keeping

MAX_FILE = 64 << 20
"""Bytes of one file that is uploaded."""
MAX_LINES = 50_000
MAX_LINE = 8 << 20
"""Bytes: as much as the body of a request."""
PER_KEY = 128
"""Files of one key, those that batches write among them."""
PER_KEY_BYTES = 256 << 20
"""Of all of them; a batch that runs may write beyond it, within a bound of its own."""
FULL_RETRY_S = 3600.0
PIECE = 256 << 10
"""Bytes of lines that are read at once; a line that is longer comes alone."""
PIECE_LINES = 256

Purpose = Literal["batch", "batch_output"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    name: str
    purpose: Purpose
    created: float
    expires: float
    bytes: int

    def shown(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created),
            "expires_at": int(self.expires),
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class FileStore:
    """The files in the gateway's database."""

    def __init__(self, path: Path, keeping: Keeping) -> None:
        self.path = path
        self.keeping = keeping

    def add(self, caller: str, name: str, lines: Iterable[bytes], seconds: float | None) -> StoredFile:
        """Keep what was uploaded for a batch.

        Args:
            seconds: how long at most; never longer than the gateway keeps things.

        Raises:
            BodyTooLarge: too many lines, or too long a line.
            LimitReached: the key has too many files, or too much in them.
        """
        now = self.keeping.clock()
        kept_s = min(self.keeping.longest_s, seconds or self.keeping.longest_s)
        id, size = new_file_id(), 0
        with open_database(self.path) as database:
            self.check_room(database, caller)
            for number, line in enumerate(lines, 1):
                if number > MAX_LINES or len(line) > MAX_LINE:
                    raise BodyTooLarge(
                        f"line {number} is too much: at most {MAX_LINES} lines of {MAX_LINE} bytes are taken",
                        check="divide the file among several batches",
                        param="file",
                    )
                size += len(line)
                put_line(database, id, number, line)
            file = StoredFile(id, name, "batch", now, now + kept_s, size)
            _insert(database, caller, file, writing=False)
            self.check_room(database, caller, added=1)
        return file

    def check_room(self, database: sqlite3.Connection, caller: str, added: int = 0) -> None:
        """Raises LimitReached: the caller's files are at their bounds, with those just ``added``."""
        count, size = database.execute(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM files WHERE caller = ?", (caller,)
        ).fetchone()
        if count - added >= PER_KEY or size > PER_KEY_BYTES:
            raise LimitReached(
                f"this key has {count} files of {size} bytes; {PER_KEY} of {PER_KEY_BYTES} are the most",
                check="delete files that are no longer needed: DELETE /v1/files/ID",
                retry_after_s=FULL_RETRY_S,
            )

    def find(self, caller: str, id: str) -> StoredFile:
        """The caller's file of this id.

        Raises:
            NotFound: there is none, or it is another key's: nobody is told which.
        """
        found = [file for file in self.list(caller) if file.id == id]
        if not found:
            raise NotFound(
                f"no file {id[:64]!r} is stored for this key",
                check="that it was uploaded with this key; GET /v1/files lists those that have not expired",
            )
        return found[0]

    def list(self, caller: str) -> list[StoredFile]:
        """All of the caller's files, the oldest first; without those that are still written."""
        with open_database(self.path) as database:
            rows = database.execute(
                "SELECT id, name, purpose, created, expires, bytes FROM files "
                "WHERE caller = ? AND NOT writing AND expires > ? ORDER BY created, rowid",
                (caller, self.keeping.clock()),
            ).fetchall()
        return [StoredFile(*row) for row in rows]

    def delete(self, caller: str, id: str) -> None:
        """Forget a file. Raises NotFound as :meth:`find`."""
        self.find(caller, id)
        with open_database(self.path) as database:
            database.execute("DELETE FROM files WHERE id = ? AND caller = ?", (id, caller))

    def read(self, id: str, after: int, most: int = PIECE_LINES) -> list[tuple[int, bytes]]:
        """Lines by their numbers, those behind line ``after``, one piece; none at the file's end."""
        with open_database(self.path) as database:
            sizes = database.execute(
                "SELECT number, length(data) FROM file_lines WHERE file = ? AND number > ? "
                "ORDER BY number LIMIT ?",
                (id, after, most),
            ).fetchall()
            ends = accumulate(size for _, size in sizes)
            fit = [number for (number, _), end in zip(sizes, ends, strict=True) if end <= PIECE]
            last = fit[-1] if fit else sizes[0][0] if sizes else after
            return database.execute(
                "SELECT number, data FROM file_lines WHERE file = ? AND number > ? AND number <= ? "
                "ORDER BY number",
                (id, after, last),
            ).fetchall()

    def line(self, id: str, number: int) -> bytes | None:
        """One line; ``None`` once the file is gone."""
        found = self.read(id, number - 1, 1)
        return found[0][1] if found and found[0][0] == number else None

    def lines(self, id: str) -> Iterator[tuple[int, bytes]]:
        """Every line by its number, read a piece at a time."""
        after = 0
        while piece := self.read(id, after):
            yield from piece
            after = piece[-1][0]

    def sweep(self) -> None:
        """Forget what has expired."""
        with open_database(self.path) as database:
            database.execute("DELETE FROM files WHERE expires <= ? AND NOT writing", (self.keeping.clock(),))


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def put_line(database: sqlite3.Connection, file: str, number: int, data: bytes) -> None:
    """One line of a file; a second one of that number changes nothing."""
    database.execute("INSERT OR IGNORE INTO file_lines VALUES (?, ?, ?)", (file, number, data))


def open_output(database: sqlite3.Connection, caller: str, file: StoredFile) -> None:
    """A file that lines are put into before anybody sees it."""
    _insert(database, caller, file, writing=True)


def close_output(database: sqlite3.Connection, id: str, created: float, expires: float) -> bool:
    """Show a file that is written, or drop it where it has no line. Says whether it is there."""
    (size,) = database.execute("SELECT sum(length(data)) FROM file_lines WHERE file = ?", (id,)).fetchone()
    if size is None:
        database.execute("DELETE FROM files WHERE id = ?", (id,))
        return False
    database.execute(
        "UPDATE files SET writing = 0, bytes = ?, created = ?, expires = ? WHERE id = ?",
        (size, created, expires, id),
    )
    return True


def _insert(database: sqlite3.Connection, caller: str, file: StoredFile, *, writing: bool) -> None:
    database.execute(
        "INSERT INTO files (id, caller, name, purpose, created, expires, bytes, writing) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (file.id, caller, file.name, file.purpose, file.created, file.expires, file.bytes, writing),
    )
