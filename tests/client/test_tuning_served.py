"""Which adapter a name means, whatever strangers announce."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from shoal.client.tuning.served import names_of, with_adapter
from shoal.errors import UsageError
from shoal.models.store.local_model import LocalModel
from shoal.swarm.announcement import Announcement, Served, ServedAdapter
from shoal.types import Digest, ModelShape

SHAPE = ModelShape("fish", Digest("sha256:" + "f" * 64), 6, 64, 256, 384)
LOCAL = LocalModel("fish", Path(), SHAPE.digest, SHAPE, 0, "F32", "folder:fish")
MINE, THEIRS = "sha256:" + "a1" * 32, "sha256:" + "b2" * 32


def serves(peer, start, end, *adapters):
    named = tuple(ServedAdapter(*adapter) for adapter in adapters)
    served = Served("fish", SHAPE.digest, 6, 64, 256, 384, start, end, "fp32", 64, 64, 0, 1.0, adapters=named)
    return Announcement(peer, 1, 0.0, 60.0, (), (), served)


def finder(*announcements, proven=()):
    return SimpleNamespace(
        serving=lambda shape: list(announcements),
        reputation=SimpleNamespace(proven=lambda peer: peer in proven),
        member=SimpleNamespace(wait_changed=trio.sleep_forever),
    )


async def found(finder, name):
    return (await with_adapter(finder, LOCAL, name, within_s=0)).shape.adapter


async def test_a_digest_is_what_it_says_whatever_a_stranger_calls_theirs():
    known = finder(serves("ann", 0, 6, ("pirate", MINE)), serves("mallory", 0, 6, (MINE[7:19], THEIRS)))
    assert await found(known, MINE[7:19]) == await found(known, MINE[7:19].upper()) == MINE
    assert names_of(known, SHAPE)[MINE[7:19]] == MINE


async def test_who_serves_some_blocks_takes_no_name_away_from_who_serves_all():
    known = finder(
        serves("ann", 0, 3, ("pirate", MINE)),
        serves("bob", 3, 6, ("pirate", MINE)),
        serves("mallory", 0, 3, ("pirate", THEIRS)),
        # That others serve the digest under another name makes it no more theirs to give.
        serves("carol", 0, 6, ("poet", THEIRS)),
    )
    assert await found(known, "pirate") == MINE
    assert names_of(known, SHAPE) == {"pirate": MINE, "poet": THEIRS}


async def test_of_several_for_every_block_the_one_of_peers_that_have_answered_before_is_meant():
    both = (
        serves("ann", 0, 3, ("pirate", MINE)),
        serves("bob", 3, 6, ("pirate", MINE)),
        serves("mallory", 0, 6, ("pirate", THEIRS)),
    )
    assert await found(finder(*both, proven={"ann", "bob"}), "pirate") == MINE
    for proven in ((), {"ann"}, {"ann", "bob", "mallory"}):
        known = finder(*both, proven=proven)
        with pytest.raises(UsageError, match="2 adapters called pirate"):
            await found(known, "pirate")
        assert names_of(known, SHAPE) == {}


async def test_one_that_nobody_serves_for_every_block_is_meant_all_the_same():
    # Its session says which blocks are missing.
    assert await found(finder(serves("ann", 0, 3, ("pirate", MINE))), "pirate") == MINE
