"""The secret of which names of kept KV are made: one for all gateways that have the same database, for ever.

So a conversation finds what hops have kept of it at any of them, and after a restart. Each key, and each
``cache_salt`` of a key, has a secret of its own that follows from it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from shoal.gateway.database.database import Database

_NAME = "caches"
_SECRET_BYTES = 32


def read_cache_secret(database: Database) -> bytes:
    """The secret, made by whoever asks first.

    Raises:
        OutOfResources: the database cannot be read or written.
    """
    with database.transaction() as changes:
        changes.execute(
            "INSERT INTO secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
            (_NAME, secrets.token_bytes(_SECRET_BYTES)),
        )
        (value,) = changes.execute("SELECT value FROM secrets WHERE name = ?", (_NAME,)).fetchone()
    return bytes(value)


def secret_of(secret: bytes, owner: Sequence[str]) -> bytes:
    """What follows from the secret for one owner of conversations, whose words are ``owner``."""
    made = hashlib.blake2b(digest_size=_SECRET_BYTES, key=secret, person=b"shoal-owner")
    for word in owner:
        encoded = word.encode("utf-8", "surrogatepass")
        made.update(len(encoded).to_bytes(8) + encoded)  # so that no two lists of words are the same bytes
    return made.digest()
