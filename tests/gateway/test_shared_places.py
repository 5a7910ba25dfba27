"""Nobody keeps all others out: places for requests, and for large bodies, of which no caller has all."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack

import pytest
import trio
import trio.testing
from starlette.datastructures import Headers

from shoal.gateway.access.counted import CountedRoute
from shoal.gateway.access.keys import Caller
from shoal.gateway.access.large_bodies import LargeBodies
from shoal.gateway.access.limits import RUNNING, WAITING, RequestLimiter
from shoal.gateway.access.shared_places import SharedPlaces
from shoal.gateway.errors import LimitReached


def take_all(places: SharedPlaces, caller: str) -> int:
    taken = 0
    while places.has_one_for(caller):
        places.take(caller)
        taken += 1
    return taken


def test_who_takes_all_it_can_leaves_an_eighth_and_the_next_ones_half_of_what_is_left() -> None:
    places = SharedPlaces(320)
    assert [take_all(places, name) for name in ("ada", "bob", "eve", "dan")] == [280, 20, 10, 5]
    assert take_all(places, "fay") == 3
    assert not places.has_one_for("ada")


def test_a_place_that_is_given_back_may_be_had_again() -> None:
    places = SharedPlaces(320)
    take_all(places, "ada")
    places.give_back("ada")
    assert take_all(places, "ada") == 1
    for _ in range(280):
        places.give_back("ada")
    assert (places.taken, places.of("ada")) == (0, 0)
    assert take_all(places, "bob") == 280


def test_few_places_may_all_be_had_by_one() -> None:
    assert take_all(SharedPlaces(3), "ada") == 3
    assert take_all(SharedPlaces(0), "ada") == 0


async def test_a_key_without_a_limit_of_its_own_does_not_keep_others_out() -> None:
    limits, ada, bob = RequestLimiter(), Caller("key_ada", "ada"), Caller("key_bob", "bob")
    async with AsyncExitStack() as held:
        with pytest.raises(LimitReached, match=r"0 requests are being answered and 280 wait; 280 of them"):
            for _ in range(RUNNING + WAITING):
                await held.enter_async_context(limits.admitted(ada))
        async with limits.admitted(bob):
            assert limits.awaited == 281


def test_a_caller_with_many_large_bodies_does_not_keep_others_out() -> None:
    bodies, large = LargeBodies(), Headers({"content-length": str(2 << 20)})

    async def receive():
        raise AssertionError("nothing is read")

    with ExitStack() as held:
        with pytest.raises(LimitReached, match=r"28 bodies of more than 1048576 bytes .* 28 of them"):
            for _ in range(32):
                held.enter_context(bodies.held("ada", large, receive))
        with bodies.held("bob", large, receive):
            pass


async def test_a_route_counts_a_large_body_as_its_callers() -> None:
    limits = RequestLimiter(bodies=LargeBodies(10, at_once=8))

    async def answer(request):
        await trio.sleep_forever()

    async def refused(name: str) -> bool:
        """Whether a request of the caller's is sent away; else it is under way from now on."""
        ended = trio.Event()
        caller = Caller(name, name)
        scope = {"type": "http", "headers": [(b"content-length", b"11")], "caller": caller}

        async def ask() -> None:
            with pytest.raises(LimitReached, match="bodies of more than 10 bytes"):
                await CountedRoute(limits, answer)(scope, receive, receive)
            ended.set()

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        return ended.is_set()

    async def receive(*_):
        raise AssertionError("nothing is read or sent")

    async with trio.open_nursery() as nursery:
        assert [await refused("ada") for _ in range(8)] == [False] * 7 + [True]
        assert not await refused("bob")
        nursery.cancel_scope.cancel()
