"""A suspicion is heard from those who are there, says nothing twice, and is refuted by whoever lives."""

from __future__ import annotations

import random

import pytest
import trio

from shoal.errors import RemoteProtocolError
from shoal.swarm import gossip_rate
from shoal.swarm.failure.detector import TOPIC as SUSPICION_TOPIC
from shoal.swarm.failure.suspicion import (
    SUSPICIONS_PER_EXPIRY,
    Suspicion,
    SuspicionLimit,
    decode_suspicion,
    encode_suspicion,
)
from shoal.testing.sim.clock import SimClock
from shoal.testing.sim.peers import SimPeers


@pytest.fixture
def clock() -> SimClock:
    return SimClock()


def test_a_suspicion_is_read_as_it_was_said():
    assert decode_suspicion(encode_suspicion(Suspicion("peer", 7))) == Suspicion("peer", 7)


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"\x92\xa0\x00", b"\x92\xa1a\xff", b"\xc1"])
def test_what_is_no_suspicion_is_refused(data):
    with pytest.raises(RemoteProtocolError):
        decode_suspicion(data)


def test_one_peer_is_heard_so_often_and_no_more_until_the_next_expiry():
    limit = SuspicionLimit(expiry_s=30.0)
    for _ in range(SUSPICIONS_PER_EXPIRY):
        assert limit.heard("liar", 1000.0)
        limit.note("liar", 1000.0)
    assert not limit.heard("liar", 1000.0)
    assert limit.heard("another", 1000.0)
    assert limit.heard("liar", 1031.0)


async def test_a_liar_who_suspects_everybody_evicts_nobody(clock, monkeypatch):
    # Everyone may speak as rarely as in a swarm of 192: each 15 s, where a word is suspected after 3 s.
    monkeypatch.setattr(gossip_rate, "STEADY_PEERS", 1)
    async with SimPeers.running(random.Random(2)) as peers:
        for _ in range(12):
            await peers.join()
        liar, *honest = peers.alive
        for _ in range(30):
            for other in honest:
                suspicion = Suspicion(other.peer, liar.member.directory.sequence(other.peer))
                await liar.network.publish(SUSPICION_TOPIC, encode_suspicion(suspicion))
            await trio.sleep(2)
            for peer in honest:
                assert {a.peer for a in peer.member.alive()} >= {other.peer for other in honest}


async def test_a_liar_makes_nobody_speak_without_end(clock):
    async with SimPeers.running(random.Random(2)) as peers:
        for _ in range(8):
            await peers.join()
        liar, victim, *_ = peers.alive
        before = liar.member.directory.get(victim.peer)
        assert before is not None
        victim.network.sent.clear()
        for _ in range(600):
            suspicion = Suspicion(victim.peer, liar.member.directory.sequence(victim.peer))
            await liar.network.publish(SUSPICION_TOPIC, encode_suspicion(suspicion))
            await trio.sleep(0.1)
        spoken = victim.network.sent["gossip"] / len(peers.alive) / 700
        assert spoken < 60


async def test_who_is_not_announced_is_not_heard(clock):
    async with SimPeers.running(random.Random(2)) as peers:
        for _ in range(4):
            await peers.join()
        stranger, victim, other, heard = peers.alive
        await stranger.member.leave()
        await trio.sleep(7)
        sequence = other.member.directory.sequence(victim.peer)
        raw = encode_suspicion(Suspicion(victim.peer, sequence))
        assert not other.network.hear(SUSPICION_TOPIC, stranger.peer, raw)
        assert other.network.hear(SUSPICION_TOPIC, heard.peer, raw)
