"""Replies of one hop: each to the question that it was asked, however late it comes."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
import trio.testing

from shoal.client.ring.hop import HopReply, HopRequest, RingHop, RouteHop
from shoal.errors import DeadlineExceeded, RemoteProtocolError
from shoal.types import PeerAddress, PeerId, Span
from shoal.wire.messages import Locate, Located, Reveal, Revealed

SESSION = bytes(16)
WHERE, SHOW = Locate(SESSION), Reveal(SESSION, 0, 1)


class Silent:
    """A channel whose other end says what the test says."""

    async def send(self, message: object, payload: bytes) -> None:
        pass


def hop() -> RingHop:
    asked = RingHop(RouteHop(PeerAddress(PeerId("peer"), ()), Span(0, 1)))
    asked.channel = cast(Any, Silent())
    return asked


async def in_vain(asked: RingHop, question: HopRequest) -> None:
    with pytest.raises(DeadlineExceeded):
        await asked.ask(question, 0.01)


async def answered(asked: RingHop, question: HopRequest, *replies: HopReply) -> HopReply:
    """What comes of a question when the hop says these things."""
    async with trio.open_nursery() as nursery:

        async def reply() -> None:
            await trio.testing.wait_all_tasks_blocked()
            for each in replies:
                asked.replied(each)

        nursery.start_soon(reply)
        return await asked.ask(question, 1.0)
    raise AssertionError


async def test_a_reply_that_comes_while_something_else_is_asked_is_no_answer_to_it() -> None:
    asked = hop()
    await in_vain(asked, WHERE)
    shown = Revealed(SESSION, 0, 1, 4)
    assert await answered(asked, SHOW, Located(SESSION, 1, 1), shown) is shown


async def test_of_two_questions_of_a_kind_the_first_reply_is_to_the_first() -> None:
    asked = hop()
    await in_vain(asked, WHERE)
    late, now = Located(SESSION, 1, 1), Located(SESSION, 2, 2)
    assert await answered(asked, WHERE, late, now) is now


async def test_a_reply_to_nothing_that_was_ever_asked_is_refused() -> None:
    asked = hop()
    with pytest.raises(ExceptionGroup) as caught:
        await answered(asked, SHOW, Located(SESSION, 1, 1))
    assert caught.group_contains(RemoteProtocolError)
    asked.replied(Located(SESSION, 1, 1))  # and where nobody asks, it is nobody's
