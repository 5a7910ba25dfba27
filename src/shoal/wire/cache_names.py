"""Names under which hops keep a session's KV for whoever goes on from the same tokens.

A key is made of a secret and of all tokens up to a position, so who does not have both cannot make it. Each
hop is told names of its own, made of the keys: what one hop knows says nothing to another. They are of all
peers through which the tokens came to it, too: what a liar has given an honest hop is found by nobody whose
way is another. ::

    client → KeepCache       keep it by these names, once the session is over or another asks for it
    client → Open(caches)    the names that a new session's beginning may have
    client ← Opened(held)    how many tokens the hop has; the first step may begin there

Whoever takes a cache has it alone: a session that had kept it ends.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from shoal.wire.fields import Count, SessionBytes, TaggedMessage

CACHE_STRIDE = 64
"""Tokens between two positions at which a cache has a name."""
MAX_CACHE_NAMES = 128
"""Of one session: those of its longest beginnings. 3 KB of a message."""


class CacheName(Struct, frozen=True, array_like=True, gc=False):
    """The name of a session's first ``tokens`` tokens, at one hop."""

    tokens: Count
    name: SessionBytes


CacheNames = Annotated[tuple[CacheName, ...], Meta(max_length=MAX_CACHE_NAMES)]


class KeepCache(TaggedMessage, frozen=True, tag="keep_cache"):
    """Keep the session's KV by these names and no others; by none, end with the session as others do."""

    session: SessionBytes
    names: CacheNames


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What the names of one beginning are made of."""

    tokens: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a session will begin with, where hops may have kept the KV of it."""

    token_ids: Sequence[int]
    keys: Sequence[CacheKey]
    affinity: bytes = b""
    """The same for all that begin like it: they look for the same hops."""

    @classmethod
    def of(cls, secret: bytes, token_ids: Sequence[int]) -> Beginning:
        """With the keys that :func:`cache_keys` makes."""
        first = cache_keys(secret, token_ids[:CACHE_STRIDE])
        return cls(token_ids, cache_keys(secret, token_ids), first[0].key if first else b"")


def cache_keys(secret: bytes, token_ids: Sequence[int]) -> tuple[CacheKey, ...]:
    """The keys of the longest beginnings of ``token_ids``, the longest last.

    Args:
        secret: of those who may share the caches, and nobody else.
    """
    key, found = hashlib.blake2b(secret, digest_size=32, person=b"shoal-cache").digest(), list[CacheKey]()
    for end in range(CACHE_STRIDE, len(token_ids) + 1, CACHE_STRIDE):
        tokens = array("q", token_ids[end - CACHE_STRIDE : end]).tobytes()
        key = hashlib.blake2b(tokens, digest_size=32, key=key).digest()
        found.append(CacheKey(end, key))
    return tuple(found[-MAX_CACHE_NAMES:])


def names_for(keys: Sequence[CacheKey], way: str) -> tuple[CacheName, ...]:
    """What one hop is told of these keys.

    Args:
        way: the peers through which tokens came to it, itself the last: what one of them has made of them is
            of no use behind others.
    """
    return tuple(
        CacheName(each.tokens, hashlib.blake2b(way.encode(), digest_size=16, key=each.key).digest())
        for each in keys
    )
