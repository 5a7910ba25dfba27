"""A SQLite file: what a gateway has where no other database is named.

It has a write-ahead log, so that readers never wait.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import trio

from shoal.errors import OutOfResources
from shoal.gateway.database.database import Database, Rows, RunArguments, RunResult, Transaction
from shoal.gateway.database.schema import bring_up_to_date, is_up_to_date

WAIT_S = 5.0
"""For another process that writes."""


class SqliteDatabase(Database):
    """One file, made when it is not there. Each transaction opens it anew."""

    shared = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        return self.path.exists()

    @contextmanager
    def transaction(self, lock: str | None = None) -> Generator[Transaction]:
        """As :meth:`Database.transaction`. There is one lock, the file's own, whatever name is given."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            with closing(sqlite3.connect(self.path, timeout=WAIT_S)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
                self._bring_up_to_date(connection)
                with connection:
                    if lock is not None:
                        connection.execute("BEGIN IMMEDIATE")
                    yield _SqliteTransaction(connection)
        except (OSError, sqlite3.Error) as error:
            raise OutOfResources(
                f"{self.path}: {error}",
                check="check that there is free disk space and that the file is yours",
            ) from error

    async def run(
        self, function: Callable[[*RunArguments], RunResult], *arguments: *RunArguments
    ) -> RunResult:
        return await trio.to_thread.run_sync(function, *arguments)

    async def run_short(
        self, function: Callable[[*RunArguments], RunResult], *arguments: *RunArguments
    ) -> RunResult:
        return await self.run(function, *arguments)

    def close(self) -> None:
        """Nothing is held open."""

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        if is_up_to_date(_version(connection), str(self.path)):
            return
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            version = _version(connection)  # another process may have been first
            if version == 0:
                _adopt(connection)
            bring_up_to_date(_SqliteTransaction(connection), version, "BLOB")


class _SqliteTransaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return self._connection.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    def now(self) -> float:
        return time.time()


def _version(connection: sqlite3.Connection) -> int:
    """Steps that the file has had; 0 of a new one, and of one that is older than versions."""
    if not _columns(connection, "schema_version"):
        return 0
    (version,) = connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
    return version


def _adopt(connection: sqlite3.Connection) -> None:
    """Give the tables of a file that is older than versions what they lack of the first step."""
    lacking = {
        "keys": (("attested_only", "INTEGER NOT NULL DEFAULT 0"), ("protect", "TEXT")),
        **dict.fromkeys(("responses", "files", "batches"), (("number", "BIGINT NOT NULL DEFAULT 0"),)),
    }
    for table, wanted in lacking.items():
        columns = _columns(connection, table)
        for name, kind in wanted if columns else ():
            if name not in columns:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
                if name == "number":
                    connection.execute(f"UPDATE {table} SET number = rowid")
    connection.execute("DROP TRIGGER IF EXISTS file_gone")  # deleted a file's lines, as we do ourselves


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
