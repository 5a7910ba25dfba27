"""How much is deleted: in pieces, each a transaction of its own, so that none outlasts a statement's time.

What is deleted so is hidden before, by a time that is over or by a key that is revoked; a piece that fails is
left to the next sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.gateway.database.database import Database, Transaction
from shoal.gateway.errors import Unauthorized

LINES_AT_ONCE = 2000
"""Of a file."""
ROWS_AT_ONCE = 256
"""Of what is bounded by bytes for each key."""
FILES_AT_ONCE = 8
KEPT = ("batches", "files", "responses", "allowances")
"""The tables with what is kept for callers."""
LOCK = "forgetting"
"""Held for a piece: of gateways that sweep at once none waits for rows in another order than the rest."""


def drop_file(database: Database, id: str) -> None:
    """Delete a file that nobody is given any more, with all of its lines."""
    with database.transaction() as found:
        (last,) = found.execute(
            "SELECT coalesce(max(number), 0) FROM file_lines WHERE file = ?", (id,)
        ).fetchone()
    for end in range(LINES_AT_ONCE, last, LINES_AT_ONCE):
        with database.transaction() as changes:
            changes.execute(
                "DELETE FROM file_lines WHERE file = ? AND number > ? AND number <= ?",
                (id, end - LINES_AT_ONCE, end),
            )
    with database.transaction() as changes:
        changes.execute("DELETE FROM file_lines WHERE file = ?", (id,))
        changes.execute("DELETE FROM files WHERE id = ?", (id,))


def drop_files(database: Database, which: str, parameters: Sequence[Any]) -> bool:
    """Delete some of the files of a condition, and say whether there may be more."""
    with database.transaction() as found:
        rows = found.execute(
            f"SELECT id FROM files WHERE {which} ORDER BY created LIMIT ?", (*parameters, FILES_AT_ONCE)
        ).fetchall()
    for (id,) in rows:
        drop_file(database, id)
    return len(rows) == FILES_AT_ONCE


def drop_rows(database: Database, table: str, which: str, parameters: Sequence[Any]) -> bool:
    """Delete some rows of a condition, by their ids, and say whether there may be more."""
    with database.transaction(LOCK) as changes:
        # The condition twice: a row may have been renewed since it was looked for.
        deleted = changes.execute(
            f"DELETE FROM {table} WHERE {which} AND id IN "
            f"(SELECT id FROM {table} WHERE {which} ORDER BY id LIMIT ?)",
            (*parameters, *parameters, ROWS_AT_ONCE),
        )
    return deleted.rowcount == ROWS_AT_ONCE


def forget_some(database: Database, caller: str) -> bool:
    """Delete some of what is kept for a key that is revoked, and say whether there may be more."""
    of_caller = ("caller = ?", (caller,))
    # Batches first: who writes a line of one holds its row, and writes none once it is gone.
    more = drop_rows(database, "batches", *of_caller)
    more = more or drop_files(database, *of_caller)
    more = more or drop_rows(database, "responses", *of_caller)
    if not more:
        with database.transaction() as changes:
            changes.execute("DELETE FROM allowances WHERE caller = ?", (caller,))
    return more


def forget_revoked(database: Database) -> bool:
    """Delete some of what is left of keys that are revoked, and say whether there may be more."""
    left = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE caller = keys.id)" for table in KEPT)
    with database.transaction() as found:
        rows = found.execute(f"SELECT id FROM keys WHERE revoked IS NOT NULL AND ({left}) LIMIT 1").fetchall()
    for (caller,) in rows:
        forget_some(database, caller)
    return bool(rows)


def check_good(database: Transaction, caller: str) -> None:
    """Whether anything may be kept for a caller still: its key may have been revoked since it asked.

    Raises:
        Unauthorized: it was.
    """
    if database.execute("SELECT 1 FROM keys WHERE id = ? AND revoked IS NOT NULL", (caller,)).fetchall():
        raise Unauthorized("the API key was revoked", check="use another key: shoal key create NAME")
