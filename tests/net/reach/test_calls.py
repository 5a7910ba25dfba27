"""Calls that others make to us: answered within bounds, whatever a relay says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
import trio.testing

from shoal.net.carriers import punch
from shoal.net.carriers.calls import CALLER_BURST, Calls
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.carriers.punch import DIALS_LIMIT, Meeting
from shoal.net.dial_budget import BURST
from shoal.net.dialable import LocalNetworks, around
from shoal.net.identity import Identity
from shoal.net.reach.control import Call
from shoal.net.reach.openings import new_token
from shoal.net.reach.relay_session import RelayAddress
from shoal.types import NatKind, PeerId

VICTIM = "/ip4/10.9.9.9/tcp/1"
"""Not on a network of ours, so that no test dials it."""
HERE = tuple(f"/ip4/127.0.0.1/tcp/{port}" for port in (2, 3, 4, 5))


class Session:
    """A control connection to a relay that says what it likes."""

    def __init__(self) -> None:
        self.address = RelayAddress(PeerId("relay"), "1.1.1.1", 1)
        self.refused: list[str] = []
        self.answered: list[int] = []

    def refuse(self, call: int, why: str) -> None:
        self.refused.append(why)

    def answer(self, call: int, addresses: tuple[str, ...]) -> None:
        self.answered.append(call)


async def called(
    times: int, nat: NatKind = "unknown", token: bytes = b"", callers: Sequence[PeerId] = ()
) -> Session:
    """A relay that hands on so many calls to meet, at once, all with one token if it is given.

    Args:
        callers: who calls, one after the other; by default somebody else each time.
    """

    async def take(pipe: DirectPipe) -> None: ...

    session = Session()
    calls = Calls(DirectCarrier(Identity.ephemeral(), None), take, LocalNetworks)
    calls._carrier.ends = (("127.0.0.1", 1),)  # pyright: ignore[reportPrivateUsage]
    calls.sessions.own = frozenset(("/ip4/127.0.0.1/tcp/1",))
    async with trio.open_nursery() as nursery:
        await nursery.start(calls.run)
        for number in range(times):
            caller = callers[number] if callers else Identity.ephemeral().peer
            call = Call(number, caller, "meet", token or new_token(), (VICTIM,), nat)
            await calls._called(cast("Any", session), call)  # pyright: ignore[reportPrivateUsage]
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return session


async def test_a_call_is_answered() -> None:
    session = await called(1)
    assert (session.answered, session.refused) == ([0], [])


async def test_two_calls_with_one_token_are_one_call() -> None:
    session = await called(2, "none", new_token())
    assert len(session.answered) == 1


async def test_a_call_that_nobody_foresaw_ends_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(Meeting, "meet", fail)
    session = await called(3)
    assert sorted(session.answered) == [0, 1, 2]
    assert sum(record.exc_info is not None for record in caplog.records) == 3


async def test_one_caller_does_not_use_up_what_others_may_ask() -> None:
    evil, honest = Identity.ephemeral().peer, Identity.ephemeral().peer
    session = await called(3 * BURST, callers=[*[evil] * (3 * BURST - 1), honest])
    assert 3 * BURST - 1 in session.answered
    assert len(session.answered) <= CALLER_BURST + 1


async def test_a_relay_cannot_have_us_knock_all_day(autojump_clock: trio.testing.MockClock) -> None:
    session = await called(3 * BURST)
    assert len(session.answered) <= BURST
    assert len(session.refused) == 3 * BURST - len(session.answered)


@pytest.mark.parametrize(("relay", "dialled"), [("1.1.1.1", 0), ("127.0.0.1", DIALS_LIMIT)])
async def test_a_relay_elsewhere_has_us_dial_nobody_here_and_one_here_within_bounds(
    relay: str, dialled: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    dials: list[tuple[str, int]] = []

    async def nobody(local: tuple[str, int], host: str, port: int) -> trio.SocketStream:
        dials.append((host, port))
        raise ConnectionRefusedError

    async def take(pipe: DirectPipe) -> None: ...

    for dial in ("dial_only_from", "dial_from"):
        monkeypatch.setattr(punch, dial, nobody)
    session = Session()
    session.address = RelayAddress(PeerId("relay"), relay, 1)
    calls = Calls(DirectCarrier(Identity.ephemeral(), None), take, lambda: around((HERE[0],), trusting=True))
    calls._carrier.ends = (("127.0.0.1", 1),)  # pyright: ignore[reportPrivateUsage]
    calls.sessions.own = frozenset(("/ip4/127.0.0.1/tcp/1",))
    async with trio.open_nursery() as nursery:
        await nursery.start(calls.run)
        call = Call(1, Identity.ephemeral().peer, "meet", new_token(), HERE, "none")
        await calls._called(cast("Any", session), call)  # pyright: ignore[reportPrivateUsage]
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert len(dials) == dialled
