"""The gateway's SQLite file: who may call, how much each has used, what is kept for each,
and a day of the swarm.

It has a write-ahead log, so that readers never wait.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from shoal.errors import OutOfResources

WAIT_S = 5.0
"""For another process that writes."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    hash BLOB NOT NULL UNIQUE,
    admin INTEGER NOT NULL,
    created REAL NOT NULL,
    revoked REAL,
    requests_per_minute INTEGER NOT NULL,
    tokens_per_minute INTEGER NOT NULL,
    concurrency INTEGER NOT NULL,
    attested_only INTEGER NOT NULL DEFAULT 0,
    protect TEXT
);
CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL,
    caller TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, caller, model)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    minute INTEGER PRIMARY KEY,
    peers INTEGER NOT NULL,
    covered REAL NOT NULL,
    tokens INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    caller TEXT NOT NULL,
    previous TEXT,
    used REAL NOT NULL,
    size INTEGER NOT NULL,
    items BLOB NOT NULL,
    response BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_of ON responses (caller, used);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used);
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY,
    caller TEXT NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    bytes INTEGER NOT NULL,
    writing INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS files_of ON files (caller, created);
CREATE TABLE IF NOT EXISTS file_lines (
    file TEXT NOT NULL,
    number INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (file, number)
);
CREATE TRIGGER IF NOT EXISTS file_gone AFTER DELETE ON files BEGIN
    DELETE FROM file_lines WHERE file = OLD.id;
END;
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY,
    caller TEXT NOT NULL,
    created REAL NOT NULL,
    finished REAL,
    holder TEXT NOT NULL,
    held_until REAL NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_of ON batches (caller, created);
CREATE INDEX IF NOT EXISTS batches_open ON batches (finished, created);
"""


@contextmanager
def open_database(path: Path) -> Generator[sqlite3.Connection]:
    """The database, made when it is not there; what the block has written is kept if it ends well.

    Raises:
        OutOfResources: the file cannot be read or written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with closing(sqlite3.connect(path, timeout=WAIT_S)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
            database.executescript(SCHEMA)
            _add_columns(database)
            with database:
                yield database
    except (OSError, sqlite3.Error) as error:
        raise OutOfResources(
            f"{path}: {error}", check="check that there is free disk space and that the file is yours"
        ) from error


def _add_columns(database: sqlite3.Connection) -> None:
    """What tables of earlier versions lack."""
    columns = {row[1] for row in database.execute("PRAGMA table_info(keys)")}
    for name, kind in (("attested_only", "INTEGER NOT NULL DEFAULT 0"), ("protect", "TEXT")):
        if name not in columns:
            database.execute(f"ALTER TABLE keys ADD COLUMN {name} {kind}")
