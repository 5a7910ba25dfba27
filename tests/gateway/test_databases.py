"""Both engines keep the same: steps are taken once, what fails is undone, and who waits is told in time."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, suppress

import pytest
import trio

from shoal import config
from shoal.errors import OutOfResources, UsageError
from shoal.gateway.access.keys import KeyLimits, create, list_keys
from shoal.gateway.database import schema
from shoal.gateway.database.opening import database_at
from shoal.gateway.database.postgres import CONNECTIONS, SHORT, PostgresDatabase
from shoal.gateway.stored.expiry import Keeping
from shoal.gateway.stored.file_routes import STORED_AT_ONCE
from shoal.gateway.stored.files import FileStore
from shoal.gateway.stored.responses import ResponseStore
from shoal.option_values import database_parameters, server_of, without_password
from tests.postgres import Server, fresh_schema

from .conftest import kept_in

RELEASED = """
CREATE TABLE keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, admin INTEGER NOT NULL,
    created REAL NOT NULL, revoked REAL, requests_per_minute INTEGER NOT NULL,
    tokens_per_minute INTEGER NOT NULL, concurrency INTEGER NOT NULL, protect TEXT);
CREATE TABLE usage (day TEXT NOT NULL, caller TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, PRIMARY KEY (day, caller, model)
) WITHOUT ROWID;
CREATE TABLE history (minute INTEGER PRIMARY KEY, peers INTEGER NOT NULL, covered REAL NOT NULL,
    tokens INTEGER NOT NULL);
CREATE TABLE responses (id TEXT PRIMARY KEY, caller TEXT NOT NULL, previous TEXT, used REAL NOT NULL,
    size INTEGER NOT NULL, items BLOB NOT NULL, response BLOB NOT NULL);
CREATE INDEX responses_of ON responses (caller, used);
CREATE INDEX responses_by_use ON responses (used);
CREATE TABLE files (id TEXT PRIMARY KEY, caller TEXT NOT NULL, name TEXT NOT NULL, purpose TEXT NOT NULL,
    created REAL NOT NULL, expires REAL NOT NULL, bytes INTEGER NOT NULL, writing INTEGER NOT NULL);
CREATE INDEX files_of ON files (caller, created);
CREATE TABLE file_lines (file TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (file, number));
CREATE TRIGGER file_gone AFTER DELETE ON files BEGIN DELETE FROM file_lines WHERE file = OLD.id; END;
CREATE TABLE batches (id TEXT PRIMARY KEY, caller TEXT NOT NULL, created REAL NOT NULL, finished REAL,
    holder TEXT NOT NULL, held_until REAL NOT NULL, record BLOB NOT NULL);
CREATE INDEX batches_of ON batches (caller, created);
CREATE INDEX batches_open ON batches (finished, created);
INSERT INTO keys VALUES ('key_1', 'old', x'00', 0, 1.5, NULL, 7, 0, 0, 'audited');
INSERT INTO responses VALUES ('r1', 'key_1', NULL, 1e9, 4, CAST('[{"id": "m1"}]' AS BLOB),
    CAST('{"id": "r1", "output": []}' AS BLOB));
INSERT INTO responses VALUES ('r0', 'key_1', 'r1', 1e9, 4, CAST('[{"id": "m0"}]' AS BLOB),
    CAST('{"id": "r0", "output": []}' AS BLOB));
INSERT INTO files VALUES ('f1', 'key_1', 'in', 'batch', 1e9, 2e9, 1, 0);
INSERT INTO file_lines VALUES ('f1', 1, x'78');
"""
"""A file as versions before ``schema_version`` made it, of which the first knew no ``attested_only``."""
SECRET = "postgresql://ada:hunter2@db.example.org:5433/shoal?sslmode=require&sslpassword=hunter2"


def test_a_file_of_an_earlier_version_is_read_and_brought_up_to_date(tmp_path):
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as file:
        file.executescript(RELEASED)
    database, keeping = kept_in(tmp_path), Keeping(30, lambda: 1e9 + 1)
    (key,) = list_keys(database)
    assert (key.caller.name, key.caller.limits, key.created) == ("old", KeyLimits(7), 1.5)
    assert (key.caller.attested_only, key.caller.protect) == (False, "audited")
    responses = ResponseStore(database, keeping)
    assert [item["id"] for item in responses.history("key_1", "r0")] == ["m1", "m0"]
    files = FileStore(database, keeping)
    assert [(file.id, list(files.lines(file.id))) for file in files.list("key_1")] == [("f1", [(1, b"x")])]
    files.delete("key_1", "f1")
    with database.transaction() as found:
        assert found.execute("SELECT count(*) FROM file_lines").fetchone() == (0,)
        assert found.execute("SELECT id, number FROM responses ORDER BY number").fetchall() == [
            ("r1", 1),
            ("r0", 2),
        ]
        assert found.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall() == []
        versions = found.execute("SELECT version FROM schema_version ORDER BY version").fetchall()
    assert versions == [(number + 1,) for number in range(len(schema.STEPS))]


def test_a_step_that_is_new_is_taken_once_and_a_database_of_a_newer_version_is_refused(
    database, tmp_path, monkeypatch
):
    create(database, "old", KeyLimits(), admin=False)
    url = database.url if database.shared else ""
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, "ALTER TABLE keys ADD COLUMN told BYTEA"))
    with closing(database_at(url, tmp_path / "gateway.db")) as newer:
        for _ in range(2):
            assert [key.caller.name for key in list_keys(newer)] == ["old"]
        with newer.transaction() as found:
            assert found.execute("SELECT told FROM keys").fetchall() == [(None,)]
    monkeypatch.setattr(schema, "STEPS", schema.STEPS[:-1])
    with (
        closing(database_at(url, tmp_path / "gateway.db")) as older,
        pytest.raises(OutOfResources, match="newer version of Shoal"),
    ):
        list_keys(older)


def test_a_step_may_take_longer_than_other_statements(postgres, monkeypatch):
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, "SELECT pg_sleep(1.2)"))
    with closing(PostgresDatabase(fresh_schema(postgres), within_s=0.5)) as database:
        assert list_keys(database) == []
        with pytest.raises(OutOfResources), database.transaction() as found:
            found.execute("SELECT pg_sleep(1.2)")


def test_what_fails_is_undone_whole_and_the_next_goes_on(database):
    create(database, "kept", KeyLimits(), admin=False)
    with pytest.raises(ZeroDivisionError), database.transaction() as changes:
        changes.execute("DELETE FROM keys")
        1 / 0  # noqa: B018
    with pytest.raises(OutOfResources), database.transaction() as changes:
        changes.execute("DELETE FROM keys")
        changes.execute("SELECT nothing FROM nowhere")
    assert [key.caller.name for key in list_keys(database)] == ["kept"]


def test_texts_bytes_and_numbers_come_back_as_they_were(database):
    row = ("ü\N{SLIGHTLY SMILING FACE}%s?", b"\0\xff", 2**40, 1.7e9 + 0.123456, True, None)
    with database.transaction() as changes:
        changes.execute(
            "INSERT INTO keys (id, hash, requests_per_minute, created, admin, protect, name, "
            "tokens_per_minute, concurrency) VALUES (?, ?, ?, ?, ?, ?, '', 0, 0)",
            row,
        )
        found = changes.execute("SELECT id, hash, requests_per_minute, created, admin, protect FROM keys")
        assert found.fetchall() == [(*row[:4], 1, None)]
        assert changes.execute("SELECT id FROM keys WHERE id = ?", ("a\0b",)).fetchone() is None


def test_who_holds_a_lock_is_waited_for_and_a_server_that_does_nothing_not_for_ever(postgres):
    url = fresh_schema(postgres)
    with closing(PostgresDatabase(url, within_s=0.3)) as database, closing(PostgresDatabase(url)) as patient:
        got = threading.Event()

        def wait():
            with patient.transaction("one"):
                got.set()

        waiting = threading.Thread(target=wait)
        with database.transaction("one"), database.transaction("another"):
            waiting.start()
            with pytest.raises(OutOfResources, match="cannot be used"), database.transaction("one"):
                pass
            assert not got.is_set()
        waiting.join(5)
        assert got.is_set()
        with pytest.raises(OutOfResources), database.transaction() as found:
            found.execute("SELECT pg_sleep(5)")
        assert list_keys(database) == []


def test_a_server_that_was_away_is_used_again_as_soon_as_it_is_back(postgres):
    server = Server()
    try:
        with closing(PostgresDatabase(server.url)) as database:
            with pytest.raises(OutOfResources, match="cannot be used"):
                list_keys(database)
            server.start()
            create(database, "kept", KeyLimits(), admin=False)
            for _ in range(2):
                server.stop()
                with pytest.raises(OutOfResources, match="cannot be used"):
                    list_keys(database)
                server.start()
                assert [key.caller.name for key in list_keys(database)] == ["kept"]
    finally:
        server.remove()


async def test_long_work_leaves_connections_to_what_all_requests_wait_for(postgres):
    with closing(PostgresDatabase(fresh_schema(postgres), within_s=1.0, connections=3)) as database:
        go_on = threading.Event()

        def long():
            with database.transaction() as found:
                found.execute("SELECT 1")
                go_on.wait(10)

        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS - SHORT):
                nursery.start_soon(_run_or_busy, database, long)
            await trio.sleep(0.1)
            with trio.fail_after(5):
                assert await database.run_short(list_keys, database) == []
            go_on.set()


async def _run_or_busy(database, function):
    with suppress(OutOfResources):
        await database.run(function)


def test_uploads_leave_connections_to_others():
    assert STORED_AT_ONCE < CONNECTIONS - SHORT


def test_no_password_is_shown(tmp_path):
    shown = without_password(SECRET)
    assert shown == "postgresql://ada:***@db.example.org:5433/shoal?sslmode=require&sslpassword=***"
    assert without_password("postgresql:///shoal") == "postgresql:///shoal"
    assert (server_of(SECRET), server_of("postgresql:///shoal")) == ("db.example.org:5433", "this machine")
    settings = config.load({"database": SECRET}, {"SHOAL_HOME": str(tmp_path)})
    assert "hunter2" not in repr(settings)
    for wrong in (
        "hunter2",
        "mysql://a:hunter2@b/c",
        "postgresql://a:hunt@er2@b/c",
        "postgresql://a:h/er2@b/c",
        "postgresql://a:100%hunter2@b/c",
        "postgresql://a:hunter2@[::1/c",
        "postgresql://a:hunter2",
        "postgresql://a@b:hunter2/c",
        "postgresql://a@b/c?PASSWORD=hunter2",
        "postgresql://a@b/c?password=100%hunter2",
    ):
        with pytest.raises(UsageError, match="not the address of a PostgreSQL server") as refused:
            config.load({"database": wrong}, {"SHOAL_HOME": str(tmp_path)})
        assert "er2" not in str(refused.value)
        assert refused.value.__suppress_context__ or refused.value.__context__ is None
        with pytest.raises(UsageError):
            PostgresDatabase(wrong)


@pytest.mark.parametrize("name", ["password", "PASSWORD", "pass%77ord", "sslpassword", "oauth_client_secret"])
def test_no_parameter_that_is_a_secret_is_shown(name):
    assert (
        without_password(f"postgresql://a@b/c?{name}=hunter2&port=1")
        == f"postgresql://a@b/c?{name}=***&port=1"
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgres://a:p%25%40@b:5/c",
        "postgresql://a:b:c@[::1]:5,db.example.org/c?sslmode=require",
        "postgresql://%2Frun%2Fpostgresql/c",
        "postgresql://",
        "postgresql:///c?host=/run/a:b",
    ],
)
def test_addresses_that_libpq_takes_are_taken(url):
    database_parameters(url)


def test_a_server_that_refuses_is_told_without_the_password():
    url = "postgresql://ada:hunter2@127.0.0.1:1/shoal"
    with closing(PostgresDatabase(url)) as database, pytest.raises(OutOfResources) as refused:
        list_keys(database)
    assert "127.0.0.1:1" in refused.value.message
    assert "hunter2" not in str(refused.value)
