"""A swarm for callers that are not on trio: whatever they ask, their own loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from anyio.from_thread import start_blocking_portal

from shoal.client.portal import AsyncioSession, AsyncioSwarm, SyncSwarm
from shoal.wire.cache_names import Beginning

WITHIN_S = 5.0


class Slow:
    """A swarm, and a session, that answer once the caller's loop has gone on."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def _answer(self) -> list[str]:
        return ["in time"] if self.goes_on.wait(WITHIN_S) else ["the caller was blocked"]

    def announcements(self) -> list[str]:
        return self._answer()

    def models(self) -> list[str]:
        return self._answer()

    def roll_back(self, position: int) -> list[str]:
        return self._answer()

    async def step(self, token_ids: list[int], *, chunk: int | None = None) -> list[str]:
        return self._answer()

    async def advance(self, token_ids: list[int], sampler: object) -> list[str]:
        return self._answer()


def of_swarm(name: str) -> Callable[[Any, Any], Any]:
    return lambda portal, slow: getattr(AsyncioSwarm(portal, slow), name)()


def of_session(name: str, *args: object) -> Callable[[Any, Any], Any]:
    def call(portal: Any, slow: Any) -> Any:
        session = AsyncioSession(portal, cast(Any, None))
        session._session = slow
        return getattr(session, name)(*args)

    return call


@pytest.mark.parametrize(
    "call",
    [
        of_swarm("announcements"),
        of_swarm("models"),
        of_session("step", [1]),
        of_session("advance", [1], None),
    ],
    ids=["announcements", "models", "step", "advance"],
)
def test_an_asyncio_loop_goes_on_while_the_swarm_answers(call: Callable[[Any, Any], Any]):
    async def main(portal: Any) -> list[str]:
        slow = Slow()
        asyncio.get_running_loop().call_soon(slow.goes_on.set)
        return await call(portal, slow)

    with start_blocking_portal("trio") as portal:
        assert asyncio.run(main(portal)) == ["in time"]


def test_a_roll_back_does_not_block_an_asyncio_loop_and_its_error_is_raised_there():
    class Session(Slow):
        def roll_back(self, position: int) -> list[str]:
            if self._answer() == ["in time"]:
                raise LookupError(position)
            return []

    async def main(portal: Any) -> None:
        slow = Session()
        asyncio.get_running_loop().call_soon(slow.goes_on.set)
        with pytest.raises(LookupError):
            await of_session("roll_back", 7)(portal, slow)

    with start_blocking_portal("trio") as portal:
        asyncio.run(main(portal))


def test_a_caller_without_a_loop_waits_for_what_it_asks():
    slow = Slow()
    slow.goes_on.set()
    with start_blocking_portal("trio") as portal:
        swarm = SyncSwarm(portal, cast(Any, slow))
        assert (swarm.announcements(), swarm.models()) == (["in time"], ["in time"])


class Kept:
    """A swarm that notes how a session was asked for, and what it keeps."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.keys: object = None

    @asynccontextmanager
    async def session(self, model: str, **options: Any) -> AsyncIterator[Kept]:
        self.asked = {"model": model, **options}
        yield self

    async def keep(self, keys: object) -> None:
        self.keys = keys


BEGINS = Beginning.of(b"secret", range(64))
ASKED = {"model": "fish", "tokens": 9, "begins": BEGINS, "background": True}


def test_a_session_begins_with_what_was_kept_and_is_kept_itself():
    swarm = Kept()
    with (
        start_blocking_portal("trio") as portal,
        SyncSwarm(portal, cast(Any, swarm)).session(**ASKED) as session,
    ):
        session.keep(BEGINS.keys)
    assert ASKED.items() <= swarm.asked.items()
    assert swarm.keys == BEGINS.keys


def test_a_session_on_asyncio_begins_with_what_was_kept_and_is_kept_itself():
    swarm = Kept()

    async def main(portal: Any) -> None:
        async with AsyncioSwarm(portal, cast(Any, swarm)).session(**ASKED) as session:
            await session.keep(BEGINS.keys)

    with start_blocking_portal("trio") as portal:
        asyncio.run(main(portal))
    assert ASKED.items() <= swarm.asked.items()
    assert swarm.keys == BEGINS.keys
