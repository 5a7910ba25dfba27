"""Whom a client asks what it runs on, and what of that it remembers: no network, and pretended time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from shoal.client.attestation import attested
from shoal.client.attestation.asking import ANSWERED_WITHIN_S
from shoal.client.attestation.attested import (
    ALL_WITHIN_S,
    ASKED_AT_MOST,
    FRESH_S,
    MOST,
    RENEW_S,
    RETRY_S,
    AttestedPeers,
)
from shoal.errors import DeadlineExceeded
from shoal.swarm.announcement import Announcement, Served
from shoal.trust.attestation.evidence import AttestationRefused, Binding, Claims
from shoal.trust.attestation.verify import Verified
from shoal.types import PeerAddress, PeerId

SERVED = Served(
    *("a", "sha256:" + "0" * 64, 6, 64, 128, 300, 0, 6, "int8", 1024, 1024, 0, 1.0),
    numerics="n1/int8/auto/rows",
    attests="snp",
)


def peer(number: int) -> Announcement:
    return Announcement(f"peer {number}", 1, 0.0, 1e9, (), (), SERVED)


@dataclass
class Peers:
    """A pool and its questions: peers that answer after a while, or never."""

    takes_s: float = 0.5
    silent: set[str] = field(default_factory=set[str])
    refused: set[str] = field(default_factory=set[str])
    holds_s: float = 1e9
    """For how long what evidence is verified with holds."""
    asked: list[str] = field(default_factory=list[str])
    used: set[PeerId] = field(default_factory=set[PeerId])
    known: AttestedPeers = field(init=False)

    async def get(self, address: PeerAddress, *, deadline_s: float) -> str:
        await trio.lowlevel.checkpoint()
        return address.peer

    async def ask(self, channel: str, served: Served) -> Verified:
        self.asked.append(channel)
        if channel in self.silent:
            await trio.sleep(ANSWERED_WITHIN_S)
            raise DeadlineExceeded(f"{channel} did not show what it runs on in time")
        await trio.sleep(self.takes_s)
        if channel in self.refused:
            raise AttestationRefused("debug", "its machine may be debugged")
        since = trio.current_time()
        claims = Claims("snp", {}, b"", "1", {}, expires=since + self.holds_s)
        return Verified(claims, Binding(channel, bytes(32), served.digest, served.numerics, b""), "a", since)

    def shown(self, *numbers: int) -> bool:
        return all(self.known.verified(peer(number)) is not None for number in numbers)


@asynccontextmanager
async def asking(peers: Peers) -> AsyncGenerator[Peers]:
    pretended: Any = peers
    async with trio.open_nursery() as nursery:
        peers.known = AttestedPeers(pretended, pretended, nursery.start_soon, lambda: peers.used)
        yield peers
        nursery.cancel_scope.cancel()


async def test_who_wants_to_know_the_same_at_once_asks_once(autojump_clock: Any) -> None:
    async with asking(Peers()) as peers:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(peers.known.refresh, [peer(1), peer(2)])
        assert peers.shown(1, 2)
        assert sorted(peers.asked) == ["peer 1", "peer 2"]


async def test_what_was_asked_counts_although_who_wanted_it_has_gone_and_nothing_more_is_asked_for_it(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attested, "AT_ONCE", 2)
    async with asking(Peers()) as peers:
        with trio.move_on_after(0.1):
            await peers.known.refresh([peer(number) for number in range(8)])
        await trio.sleep(10)
        assert len(peers.asked) == 2
        assert all(peers.known.of(PeerId(one)) for one in peers.asked)
        await peers.known.refresh([peer(number) for number in range(8)])
        assert len(peers.asked) == 8


async def test_as_many_silent_peers_as_are_asked_bar_no_honest_one(autojump_clock: Any) -> None:
    silent = range(1, ASKED_AT_MOST)
    async with asking(Peers(silent={f"peer {number}" for number in silent})) as peers:
        everybody = [peer(number) for number in (*silent, 0)]
        began = trio.current_time()
        await peers.known.refresh(everybody, enough=lambda: peers.shown(0))
        assert peers.shown(0)
        assert trio.current_time() - began < ALL_WITHIN_S


async def test_who_was_silent_is_asked_after_those_who_were_not(autojump_clock: Any) -> None:
    silent = range(1, 2 * ASKED_AT_MOST)
    async with asking(Peers(silent={f"peer {number}" for number in silent})) as peers:
        await peers.known.refresh([peer(number) for number in silent])
        await trio.sleep(FRESH_S)
        peers.asked.clear()
        await peers.known.refresh([peer(number) for number in (*silent, 0)])
        assert peers.shown(0)
        assert len(peers.asked) == ASKED_AT_MOST
        never_asked = {f"peer {number}" for number in silent} - set(peers.asked)
        assert len(never_asked) == ASKED_AT_MOST  # last time's, of whom it is known that they say nothing


async def test_who_does_not_answer_when_asked_again_counts_until_its_time_is_over(
    autojump_clock: Any,
) -> None:
    async with asking(Peers()) as peers:
        await peers.known.refresh([peer(1)])
        await trio.sleep(RENEW_S)
        peers.silent |= {"peer 1", *(f"peer {number}" for number in range(2, 40))}
        await peers.known.refresh([peer(number) for number in range(1, 40)], RENEW_S)
        await trio.sleep(ALL_WITHIN_S)
        assert peers.asked.count("peer 1") == 2
        assert peers.shown(1)
        await trio.sleep(FRESH_S - RENEW_S)
        assert not peers.shown(1)


async def test_who_shows_something_else_when_asked_again_does_not_count_any_more(autojump_clock: Any) -> None:
    async with asking(Peers()) as peers:
        await peers.known.refresh([peer(1)])
        peers.refused.add("peer 1")
        await trio.sleep(RENEW_S)
        await peers.known.refresh([peer(1)], RENEW_S)
        assert not peers.shown(1)
        assert "debugged" in peers.known.why_not([peer(1)])
        await peers.known.refresh([peer(1)])
        assert len(peers.asked) == 2  # not again at once
        await trio.sleep(RETRY_S)
        await peers.known.refresh([peer(1)])
        assert len(peers.asked) == 3


async def test_what_a_peer_has_shown_counts_no_longer_than_what_it_was_verified_with(
    autojump_clock: Any,
) -> None:
    async with asking(Peers(holds_s=60.0)) as peers:
        await peers.known.refresh([peer(1)])
        await trio.sleep(59)
        assert peers.shown(1)
        await trio.sleep(1)
        assert not peers.shown(1)
        await peers.known.refresh([peer(1)])
        assert peers.shown(1)


async def test_of_too_many_peers_those_in_use_are_remembered_and_those_that_show_nothing_are_not(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attested, "ASKED_AT_MOST", MOST)
    async with asking(Peers(takes_s=0.01)) as peers:
        await peers.known.refresh([peer(1), peer(2)])
        peers.used = {PeerId("peer 1")}
        await trio.sleep(1)
        strangers = [peer(number) for number in range(10, 10 + MOST)]
        peers.refused = {one.peer for one in strangers}
        await peers.known.refresh(strangers)
        assert peers.shown(1, 2)
        peers.refused = set()
        await trio.sleep(RETRY_S)
        await peers.known.refresh(strangers)
        assert peers.shown(1)
        assert not peers.shown(2)


async def test_who_is_forgotten_is_asked_again(autojump_clock: Any) -> None:
    async with asking(Peers()) as peers:
        await peers.known.refresh([peer(1)])
        peers.known.forget(PeerId("peer 1"))
        assert not peers.shown(1)
        await peers.known.refresh([peer(1)])
        assert peers.shown(1)
        assert len(peers.asked) == 2
