"""Files of callers: what a batch reads, and what it has written. Kept line by line, bounded for each key.

Every method reads or writes the disk.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from shoal.errors import OutOfResources
from shoal.gateway.database.database import Database, Transaction
from shoal.gateway.database.forgetting import check_good, drop_file, drop_files
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

log = logging.getLogger(__name__)

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

    def __init__(self, database: Database, keeping: Keeping) -> None:
        self.database = database
        self.keeping = keeping

    def add(self, caller: str, name: str, lines: Iterable[bytes], seconds: float | None) -> StoredFile:
        """Keep what was uploaded for a batch.

        Args:
            seconds: how long at most; never longer than the gateway keeps things.

        Raises:
            BodyTooLarge: too many lines, or too long a line.
            LimitReached: the key has too many files, or too much in them.
            Unauthorized: it was revoked meanwhile.
        """
        now = self.keeping.clock()
        kept_s = min(self.keeping.longest_s, seconds or self.keeping.longest_s)
        id, size = new_file_id(), 0
        with self.database.transaction(files_lock(caller)) as changes:
            self.check_room(changes, caller)
            for piece in _pieces(lines):
                size += sum(len(line) for _, line in piece)
                put_lines(changes, id, piece)
            file = StoredFile(id, name, "batch", now, now + kept_s, size)
            _insert(changes, caller, file, writing=False)
            self.check_room(changes, caller, added=1)
            check_good(changes, caller)
        return file

    def check_room(self, database: Transaction, caller: str, added: int = 0) -> None:
        """Raises LimitReached: the caller's files are at their bounds, with those just ``added``."""
        count, size = database.execute(
            "SELECT count(*), CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM files WHERE caller = ?", (caller,)
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
            raise self._not_found(id)
        return found[0]

    def list(self, caller: str) -> list[StoredFile]:
        """All of the caller's files, the oldest first; without those that are still written."""
        with self.database.transaction() as found:
            rows = found.execute(
                "SELECT id, name, purpose, created, expires, bytes FROM files "
                "WHERE caller = ? AND writing = 0 AND expires > ? ORDER BY created, number",
                (caller, self.keeping.clock()),
            ).fetchall()
        return [StoredFile(*row) for row in rows]

    def delete(self, caller: str, id: str) -> None:
        """Forget a file. Raises NotFound as :meth:`find`."""
        with self.database.transaction() as changes:  # hidden at once: it may have very many lines
            hidden = changes.execute(
                "UPDATE files SET expires = 0 WHERE id = ? AND caller = ? AND writing = 0 AND expires > ?",
                (id, caller, self.keeping.clock()),
            )
        if not hidden.rowcount:
            raise self._not_found(id)
        try:
            drop_file(self.database, id)
        except OutOfResources as error:
            log.warning("%s is deleted with the next sweep: %s", id, error.message)

    def read(self, id: str, after: int, most: int = PIECE_LINES) -> list[tuple[int, bytes]]:
        """Lines by their numbers, those behind line ``after``, one piece; none at the file's end."""
        with self.database.transaction() as found:
            sizes = found.execute(
                "SELECT number, length(data) FROM file_lines WHERE file = ? AND number > ? "
                "ORDER BY number LIMIT ?",
                (id, after, most),
            ).fetchall()
            ends = accumulate(size for _, size in sizes)
            fit = [number for (number, _), end in zip(sizes, ends, strict=True) if end <= PIECE]
            last = fit[-1] if fit else sizes[0][0] if sizes else after
            return found.execute(
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

    def sweep(self) -> bool:
        """Forget some of what has expired, and say whether there may be more."""
        return drop_files(self.database, "expires <= ? AND writing = 0", (self.keeping.clock(),))

    def _not_found(self, id: str) -> NotFound:
        return NotFound(
            f"no file {id[:64]!r} is stored for this key",
            check="that it was uploaded with this key; GET /v1/files lists those that have not expired",
        )


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def files_lock(caller: str) -> str:
    """Held by who adds to a caller's files and batches, of which there is a bound."""
    return f"files of {caller}"


def put_lines(database: Transaction, file: str, lines: Iterable[tuple[int, bytes]]) -> None:
    """Lines of a file by their numbers; a second one of a number changes nothing."""
    database.executemany(
        "INSERT INTO file_lines (file, number, data) VALUES (?, ?, ?) ON CONFLICT (file, number) DO NOTHING",
        [(file, number, data) for number, data in lines],
    )


def open_output(database: Transaction, caller: str, file: StoredFile) -> None:
    """A file that lines are put into before anybody sees it."""
    _insert(database, caller, file, writing=True)


def close_output(database: Transaction, id: str, created: float, expires: float) -> bool:
    """Show a file that is written, or drop it where it has no line. Says whether it is there."""
    (size,) = database.execute(
        "SELECT CAST(sum(length(data)) AS BIGINT) FROM file_lines WHERE file = ?", (id,)
    ).fetchone()
    if size is None:
        database.execute("DELETE FROM files WHERE id = ?", (id,))
        return False
    database.execute(
        "UPDATE files SET writing = 0, bytes = ?, created = ?, expires = ? WHERE id = ?",
        (size, created, expires, id),
    )
    return True


def _pieces(lines: Iterable[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    """Lines by their numbers, as many at once as one trip to a server is worth.

    Raises:
        BodyTooLarge: too many lines, or too long a line.
    """
    piece, size = list[tuple[int, bytes]](), 0
    for number, line in enumerate(lines, 1):
        if number > MAX_LINES or len(line) > MAX_LINE:
            raise BodyTooLarge(
                f"line {number} is too much: at most {MAX_LINES} lines of {MAX_LINE} bytes are taken",
                check="divide the file among several batches",
                param="file",
            )
        piece.append((number, line))
        size += len(line)
        if len(piece) == PIECE_LINES or size >= PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _insert(database: Transaction, caller: str, file: StoredFile, *, writing: bool) -> None:
    database.execute(
        "INSERT INTO files (number, id, caller, name, purpose, created, expires, bytes, writing) VALUES "
        "((SELECT coalesce(max(number), 0) + 1 FROM files WHERE caller = ?), ?, ?, ?, ?, ?, ?, ?, ?)",
        (caller, file.id, caller, file.name, file.purpose, file.created, file.expires, file.bytes, writing),
    )
