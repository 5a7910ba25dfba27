"""The tables, by numbered steps. A database has had as many of them as its ``schema_version`` says.

A step is never changed once it was released: what comes later is a step of its own, at the end. Steps are
written for both engines: numbers are ``BIGINT`` and ``DOUBLE PRECISION``, bytes ``BYTEA``.
"""

from __future__ import annotations

from shoal.errors import OutOfResources
from shoal.gateway.database.database import Transaction

KEPT = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    hash BYTEA NOT NULL UNIQUE,
    admin INTEGER NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    revoked DOUBLE PRECISION,
    requests_per_minute BIGINT NOT NULL,
    tokens_per_minute BIGINT NOT NULL,
    concurrency BIGINT NOT NULL,
    attested_only INTEGER NOT NULL DEFAULT 0,
    protect TEXT
);
CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL,
    caller TEXT NOT NULL,
    model TEXT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    PRIMARY KEY (day, caller, model)
);
CREATE TABLE IF NOT EXISTS history (
    minute BIGINT PRIMARY KEY,
    peers BIGINT NOT NULL,
    covered DOUBLE PRECISION NOT NULL,
    tokens BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    number BIGINT NOT NULL DEFAULT 0,
    caller TEXT NOT NULL,
    previous TEXT,
    used DOUBLE PRECISION NOT NULL,
    size BIGINT NOT NULL,
    items BYTEA NOT NULL,
    response BYTEA NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used);
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY,
    number BIGINT NOT NULL DEFAULT 0,
    caller TEXT NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    expires DOUBLE PRECISION NOT NULL,
    bytes BIGINT NOT NULL,
    writing INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS files_of ON files (caller, created);
CREATE TABLE IF NOT EXISTS file_lines (
    file TEXT NOT NULL,
    number BIGINT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (file, number)
);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY,
    number BIGINT NOT NULL DEFAULT 0,
    caller TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    finished DOUBLE PRECISION,
    holder TEXT NOT NULL,
    held_until DOUBLE PRECISION NOT NULL,
    record BYTEA NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_of ON batches (caller, created);
CREATE INDEX IF NOT EXISTS batches_open ON batches (finished, created);
"""
"""What there was before databases had versions. ``number`` says of one caller's rows which came first."""
NUMBERED = """
CREATE INDEX responses_numbered ON responses (caller, number);
CREATE INDEX responses_in_order ON responses (caller, used, number, size, id);
DROP INDEX IF EXISTS responses_of;
"""
"""``responses_in_order`` has all that is asked of a caller's responses to make room: none of them is read."""
ALLOWED = """
CREATE TABLE gateways (
    id TEXT PRIMARY KEY,
    alive_until DOUBLE PRECISION NOT NULL
);
CREATE TABLE allowances (
    caller TEXT NOT NULL,
    background INTEGER NOT NULL,
    requests DOUBLE PRECISION NOT NULL,
    tokens DOUBLE PRECISION NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (caller, background)
);
CREATE TABLE leases (
    id TEXT PRIMARY KEY,
    caller TEXT NOT NULL,
    background INTEGER NOT NULL,
    gateway TEXT NOT NULL
);
CREATE INDEX leases_of ON leases (caller, background);
"""
"""What each caller has left of its limits, and what it has going at which gateway."""
WRITTEN_ONCE = """
CREATE TABLE writers (
    id TEXT PRIMARY KEY,
    number BIGINT NOT NULL,
    at DOUBLE PRECISION NOT NULL
);
CREATE INDEX writers_by_time ON writers (at);
CREATE INDEX leases_by_gateway ON leases (gateway);
"""
"""The last thing that each writer has added up, so that none is added twice."""
SECRETS = """
CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);
"""
"""What only the gateways of this database know."""
EARNED = """
CREATE TABLE money (
    hour BIGINT PRIMARY KEY,
    earned TEXT NOT NULL,
    spent TEXT NOT NULL
);
CREATE TABLE money_seen (
    channel TEXT PRIMARY KEY,
    amount TEXT NOT NULL
);
"""
"""What payment channels came to, hour by hour, and how far each machine has seen its own. Amounts have 128
bits: text."""
STEPS = (KEPT, NUMBERED, ALLOWED, WRITTEN_ONCE, SECRETS, EARNED)
LOCK = "schema"
"""Held while steps are taken, so that of several gateways that start at once one takes them."""


def bring_up_to_date(transaction: Transaction, version: int, byte_type: str) -> None:
    """Take the steps that a database has not had.

    Args:
        transaction: of who holds :data:`LOCK`.
        version: steps that it has had.
        byte_type: what the engine calls bytes.
    """
    transaction.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY)")
    for number, step in list(enumerate(STEPS, 1))[version:]:
        for statement in step.replace("BYTEA", byte_type).split(";"):
            if statement.strip():
                transaction.execute(statement)
        transaction.execute("INSERT INTO schema_version (version) VALUES (?)", (number,))


def is_up_to_date(version: int, where: str) -> bool:
    """Whether a database has had all steps.

    Raises:
        OutOfResources: it has had steps that this version of Shoal does not know.
    """
    if version > len(STEPS):
        raise OutOfResources(
            f"{where} was last used by a newer version of Shoal",
            check="install that version here, or restore a copy of the database from before",
            next_command="shoal version",
        )
    return version == len(STEPS)
