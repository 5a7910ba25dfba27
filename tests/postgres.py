"""A PostgreSQL server, for tests: its cluster in a temporary folder, its socket in there, and no port.

All processes of a run share one. Run as a module, this holds it until the last process that uses it has
ended, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import psycopg
import pytest
from filelock import FileLock

DEBIAN = Path("/usr/lib/postgresql")
WITHIN_S = 60
FAST = (
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "autovacuum=off",
    "shared_buffers=32MB",
)
"""Nothing of it is to outlive the machine."""
_using: list[IO[str]] = []
"""Open while this process uses the shared server: its lock says so."""


class Server:
    """One server. It listens at no port."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-postgres-"))
        self._as = _unprivileged() if os.geteuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None
        if self._as:
            os.chown(self.folder, self._as["user"], self._as["group"])
        options = ("-A", "trust", "-U", "shoal", "-E", "UTF8", "--locale=C", "--no-sync")
        made = subprocess.run(
            [programs() / "initdb", "-D", self.folder / "data", *options],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN_S,
            **self._as,
        )
        assert made.returncode == 0, made.stderr

    @property
    def url(self) -> str:
        return f"postgresql://shoal@/postgres?host={self.folder}"

    def start(self) -> None:
        settings = [word for setting in FAST for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [programs() / "postgres", "-D", self.folder / "data", "-k", self.folder, "-h", "", *settings],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as,
            )
        until = time.monotonic() + WITHIN_S
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        """At once: whoever is connected is told so."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(WITHIN_S)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


def programs() -> Path:
    """Where PostgreSQL's programs are. Where the tests count they must be there, else tests are skipped."""
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    named = shutil.which("initdb")
    if found or named:
        return (found[-1] if found else Path(named or "")).parent
    reason = "no PostgreSQL here: scripts/setup.sh tests"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    raise AssertionError(reason)


def shared_server(run: Path) -> str:
    """The URL of the server of a run, whose processes all know the folder ``run``."""
    url = run / "postgres.url"
    with FileLock(run / "postgres.lock"):
        if not _using:
            programs()
            users = (run / "postgres.users").open("a")
            fcntl.flock(users, fcntl.LOCK_SH)  # a server that is about to end has ended then
            _using.append(users)
        if not url.exists():
            holder = subprocess.Popen(
                [sys.executable, "-m", "tests.postgres", run],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the tests
            )
            assert holder.stdout is not None
            url.write_text(holder.stdout.readline().decode().strip())
    return url.read_text()


def fresh_schema(url: str) -> str:
    """A URL by which the database has no tables yet."""
    schema = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    return f"{url}&options=-csearch_path%3D{schema}"


def _unprivileged() -> dict[str, int]:
    """Who runs the server where we are root, which it refuses: the package's own user."""
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid}


def _hold(run: Path) -> None:
    server = Server()
    try:
        server.start()
        print(server.url, flush=True)
        with (run / "postgres.users").open("a") as users:
            fcntl.flock(users, fcntl.LOCK_EX)  # which comes when nobody uses it any more
            (run / "postgres.url").unlink(missing_ok=True)
            server.stop()
    finally:
        server.remove()


if __name__ == "__main__":
    _hold(Path(sys.argv[1]))
