"""Locks by name: one at a time for each, nobody waits for another name, and none is kept in vain."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from shoal.keyed_locks import KeyedLocks


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


async def test_who_waits_for_one_name_waits_for_nobody_at_another(autojump_clock: MockClock) -> None:
    locks, done = KeyedLocks[str](), list[tuple[str, float]]()

    async def hold(key: str) -> None:
        async with locks.held(key):
            await trio.sleep(1)
            done.append((key, trio.current_time()))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for key in ("a", "a", "b"):
            nursery.start_soon(hold, key)
        await trio.sleep(1.5)
        assert len(locks) == 1
    assert sorted((key, round(at - began)) for key, at in done) == [("a", 1), ("a", 2), ("b", 1)]
    assert len(locks) == 0


async def test_who_gives_up_or_fails_leaves_the_others_one_at_a_time(autojump_clock: MockClock) -> None:
    locks, inside = KeyedLocks[str](), 0

    async def hold() -> None:
        nonlocal inside
        async with locks.held("a"):
            inside += 1
            assert inside == 1
            await trio.sleep(1)
            inside -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        await trio.sleep(0.1)
        with trio.move_on_after(0.1):
            await hold()
        nursery.start_soon(hold)
        nursery.start_soon(hold)
    with pytest.raises(OSError, match="no"):
        async with locks.held("a"):
            raise OSError("no")
    assert len(locks) == 0
