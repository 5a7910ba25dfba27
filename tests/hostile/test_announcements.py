"""Announcements that lie (docs/hostile.md 16), and peers that only some can see (18).

Sybil floods of a directory: ``tests/swarm/test_eviction.py``.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from shoal.swarm.announcement import Announcement, seal
from shoal.swarm.taking_part.speaker import TOPIC
from shoal.testing.memory import MemoryNetwork
from shoal.testing.swarm import MemorySwarm, memory_swarm
from shoal.types import PeerId, Span
from tests.hostile.conftest import PIECES, Attack, honest
from tests.one_process import KERNELS, OneProcess


def word_of(swarm: MemorySwarm, index: int = 0) -> tuple[Announcement, bytes]:
    """A node's own announcement, as the client has it."""
    directory, peer = swarm.client.member.directory, swarm.networks[index].peer
    announcement = directory.get(peer)
    assert announcement is not None
    return announcement, directory.raw(peer)


def forged(attack: Attack, evil: MemoryNetwork, **changes: object) -> bytes:
    """The honest node's announcement with ``changes``, sealed by somebody else."""
    return seal(msgspec.structs.replace(word_of(attack.swarm)[0], **changes), evil.sign)


async def hear(attack: Attack, evil: MemoryNetwork, raw: bytes) -> None:
    """Gossip bytes to everybody, and let them be heard."""
    await evil.publish(TOPIC, raw)
    await trio.sleep(0.02)


async def test_16_forged_replayed_and_misdated_announcements_change_nothing(attack: Attack) -> None:
    swarm = attack.swarm
    evil = swarm.world.network()
    directory, now = swarm.client.member.directory, swarm.client.member.now()
    honest_word, replay = word_of(swarm)
    later = honest_word.sequence + 10**6
    for raw in (
        forged(attack, evil, sequence=later),  # not signed by whom it speaks of
        forged(attack, evil, sequence=later, served=None),  # as if it left
        forged(attack, evil, peer=evil.peer, issued=now + 3600, expires=now + 3630),  # from the future
        forged(attack, evil, peer=evil.peer, issued=now - 60, expires=now - 30),  # over
        forged(attack, evil, peer=evil.peer, issued=now, expires=now + 10**6),  # for ever
        forged(attack, evil, peer=evil.peer, issued=float("nan"), expires=float("inf")),
        replay,
        replay[:-1] + bytes([replay[-1] ^ 1]),
        b"",
        bytes(5000),
    ):
        await hear(attack, evil, raw)
    assert word_of(swarm)[0].sequence < later
    assert directory.get(evil.peer) is None
    del swarm.world.peers[evil.peer]


async def test_16_an_older_word_of_a_node_does_not_come_back(attack: Attack) -> None:
    swarm = attack.swarm
    _, old = word_of(swarm)
    await swarm.nodes[0].member.announce()
    await trio.sleep(0.02)
    newest = word_of(swarm)[0].sequence
    evil = swarm.world.network()
    await hear(attack, evil, old)
    assert word_of(swarm)[0].sequence == newest
    del swarm.world.peers[evil.peer]


async def test_16_who_announces_what_it_does_not_serve_costs_a_detour(
    attack: Attack, whole: OneProcess
) -> None:
    """A peer that says it is infinitely fast and does not answer is passed over; the tokens are the same."""
    swarm = attack.swarm
    evil = swarm.world.network()
    served = msgspec.structs.replace(
        word_of(swarm)[0].served, step_ms=1e-9, tokens=1 << 40, tokens_free=1 << 40, sessions=0
    )
    now = swarm.client.member.now()
    raw = forged(
        attack, evil, peer=evil.peer, issued=now, expires=now + 30, served=served, libp2p=("/memory/x",)
    )
    await hear(attack, evil, raw)
    assert swarm.client.member.directory.get(PeerId(evil.peer)) is not None  # nothing shows that it lies
    del swarm.world.peers[evil.peer]  # nobody answers there
    async with swarm.client.session(str(attack.checkpoint), tokens=64) as session:
        await honest(session, PIECES, whole.logits(PIECES))
        assert [hop.address.peer for hop in session.ring.route] == [swarm.networks[0].peer]


@pytest.mark.parametrize("blind", ["client", "hop"])
async def test_18_peers_that_only_some_can_see_are_gone_round(
    tmp_path: Path, checkpoint: Path, whole: OneProcess, blind: str
) -> None:
    """A node that the client cannot reach, or that the hop before it cannot, though others can."""
    spans = [Span(0, 3), Span(3, 6), Span(3, 6)]
    async with memory_swarm(tmp_path / "home", checkpoint, spans, open_timeout_s=3, **KERNELS) as swarm:
        first, unseen = swarm.networks[0].peer, swarm.networks[1].peer
        one = swarm.client.network.peer if blind == "client" else first
        swarm.world.cut.add(frozenset((one, unseen)))
        for _ in range(3):
            async with swarm.client.session(str(checkpoint), tokens=64) as session:
                await honest(session, PIECES, whole.logits(PIECES))
                assert session.ring.route[1].address.peer == swarm.networks[2].peer


async def test_18_a_node_says_when_another_process_announces_itself_with_its_identity(
    attack: Attack, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, not each time, and not of what it has said itself."""
    member, (mine, raw) = attack.swarm.nodes[0].member, word_of(attack.swarm)
    member._take(raw)
    assert not caplog.records
    for later in (1, 2):
        theirs = msgspec.structs.replace(
            mine, sequence=mine.sequence + 10**6 * later, direct=("/ip4/192.0.2.7/tcp/1",)
        )
        member._take(seal(theirs, attack.swarm.networks[0].sign))
    (record,) = caplog.records
    assert "192.0.2.7" in record.getMessage()
    assert "SHOAL_HOME" in record.getMessage()


async def test_18_two_nodes_with_one_identity_do_not_mix_sessions(
    tmp_path: Path, checkpoint: Path, whole: OneProcess
) -> None:
    """A copied key: the later word counts, and an answer is right or an error, never a mixture."""
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], **KERNELS) as swarm:
        twin = MemoryNetwork(swarm.world, swarm.networks[0]._identity)
        announcement, _ = word_of(swarm)
        lie = msgspec.structs.replace(
            announcement,
            sequence=announcement.sequence + 1,
            served=msgspec.structs.replace(announcement.served, start=0, end=3),
        )
        await twin.publish(TOPIC, seal(lie, twin.sign))
        await trio.sleep(0.02)
        assert word_of(swarm)[0].served.end == 3
        assert swarm.client.coverage(swarm.model.digest) == [1, 1, 1, 0, 0, 0]
        await swarm.nodes[0].member.announce()  # the real one goes on speaking
        await trio.sleep(0.02)
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            await honest(session, PIECES, whole.logits(PIECES))
