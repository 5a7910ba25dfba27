"""Which database the settings name."""

from __future__ import annotations

from pathlib import Path

from shoal.gateway.database.database import Database
from shoal.gateway.database.sqlite import SqliteDatabase


def database_at(url: str, file: Path) -> Database:
    """The database that the settings name. Nothing is opened yet.

    Args:
        url: ``postgresql://…``, or empty for the file.
        file: of SQLite; made when it is first used.

    Raises:
        IncompatibleLibrary: what PostgreSQL needs is not installed.
    """
    if not url:
        return SqliteDatabase(file)
    from shoal.gateway.database.postgres import PostgresDatabase  # noqa: PLC0415 - an extra, and slow to import

    return PostgresDatabase(url)
