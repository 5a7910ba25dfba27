"""What is added up is written once, also where nobody heard if it was: the answer to a commit can be lost.

Each writer numbers what it writes, writes one after the other, and tries one that has failed again as it was.
The number is written in the same transaction, and what has one that is there already is not written again.
"""

from __future__ import annotations

import secrets

from shoal.gateway.database.database import Database, Transaction
from shoal.gateway.database.forgetting import drop_rows

KEPT_S = 30 * 86400.0
"""How long a writer is remembered after its last."""


class Writer:
    """Numbers for what is written. One that a number was given out for is written before the next."""

    def __init__(self) -> None:
        self._id = secrets.token_hex(16)
        self._number = 0

    def next(self) -> WriteNumber:
        self._number += 1
        return WriteNumber(self._id, self._number)


class WriteNumber:
    """Of one write."""

    def __init__(self, writer: str, number: int) -> None:
        self._writer = writer
        self._number = number

    def is_new(self, changes: Transaction) -> bool:
        """Whether this is the write's first transaction that is kept. Who writes the same one waits."""
        written = changes.execute(
            "INSERT INTO writers (id, number, at) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "number = excluded.number, at = excluded.at WHERE writers.number < excluded.number",
            (self._writer, self._number, changes.now()),
        )
        return bool(written.rowcount)


def sweep_writers(database: Database) -> bool:
    """Forget some writers that are long gone, and say whether there may be more."""
    with database.transaction() as found:
        oldest = found.now() - KEPT_S
    return drop_rows(database, "writers", "at <= ?", (oldest,))
