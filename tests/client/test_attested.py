"""Routes over peers alone that show what they run on: in memory, on chips that there are not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from shoal.client.attestation import attested
from shoal.client.attestation.asking import AttestationQuestions
from shoal.client.ring import rings, route_finder
from shoal.client.sampling import Sampler, Sampling
from shoal.client.session import Session
from shoal.errors import NoCoverage, NotAllowed, RemoteProtocolError, ShoalError, StepFailed, UsageError
from shoal.node.attestation.answering import NOT_ATTESTING
from shoal.node.attestation.start import Attesting
from shoal.testing.swarm import MemorySwarm
from shoal.testing.tee.snp import FakeChip, allowed_chip
from shoal.testing.tee.source import attesting_on
from shoal.trust.attestation.measurements import Measurements
from shoal.trust.attestation.verify import Roots
from shoal.types import PeerId, Span
from shoal.wire.fields import NextHop
from shoal.wire.messages import Attest, Attested, Open
from tests.one_process import FORMAT

from .conftest import PROMPT, THIRDS, memory_swarm

GREEDY = Sampler(Sampling())
ALLOWED = Measurements(snp=(allowed_chip(),))


@cache
def chip() -> FakeChip:
    """A chip whose certificates hold now: the client in memory goes by this machine's time of day."""
    return FakeChip(datetime.fromtimestamp(time.time(), UTC) - timedelta(days=1))


@asynccontextmanager
async def swarm_of(
    home: Path, checkpoint: Path, *shown: Attesting | None, spans: Any = THIRDS, **options: Any
) -> AsyncGenerator[MemorySwarm]:
    """A swarm whose nodes show what they are given, and a client with a list and our own root."""
    async with memory_swarm(home, checkpoint, [], **options) as swarm:
        for span, attesting in zip(spans, shown, strict=True):
            await swarm.add_node(span, attesting=attesting)
        swarm.client.member.clock.wall = time.time  # certificates have dates, and trio's clock has none
        swarm.client.rings.attest_by(ALLOWED, Roots(amd=chip().roots))
        yield swarm


def peers_of(swarm: MemorySwarm) -> set[PeerId]:
    return {network.peer for network in swarm.networks}


async def hear(swarm: MemorySwarm) -> None:
    with trio.fail_after(25):
        while len(swarm.client.announcements()) < len(swarm.nodes):
            await swarm.client.member.wait_changed()


def kill_hop(swarm: MemorySwarm, session: Session) -> int:
    """The one hop of a session is gone; which node it was."""
    at = session.ring.route[0].address.peer
    index = next(i for i, network in enumerate(swarm.networks) if network.peer == at)
    swarm.kill(index)
    return index


@asynccontextmanager
async def two_replicas(home: Path, checkpoint: Path) -> AsyncGenerator[MemorySwarm]:
    """Two nodes that serve the whole model, of which the first alone has shown yet what it runs on."""
    shown = [attesting_on(chip()), attesting_on(chip())]
    async with swarm_of(home, checkpoint, *shown, spans=[Span(0, 6)] * 2) as swarm:
        await hear(swarm)
        known = swarm.client.rings.attested
        assert known is not None
        await known.refresh([a for a in swarm.client.announcements() if a.peer == swarm.networks[0].peer])
        yield swarm


async def test_an_answer_comes_over_peers_that_have_shown_what_they_run_on(
    tmp_path: Path, checkpoint: Path
) -> None:
    shown = [attesting_on(chip()) for _ in THIRDS]
    async with swarm_of(tmp_path, checkpoint, *shown) as swarm:
        answer = swarm.client.generate(str(checkpoint), PROMPT, max_tokens=4, attested=True)
        strict = [delta async for delta in answer]
        plain = [delta async for delta in swarm.client.generate(str(checkpoint), PROMPT, max_tokens=4)]
        for level, attested_too in (("attested", None), ("audited", True), ("fast", True)):
            answer = swarm.client.generate(
                str(checkpoint), PROMPT, max_tokens=4, protect=level, attested=attested_too
            )
            assert [delta async for delta in answer]
            assert (answer.protection.asked, answer.protection.level) == (level, "attested")
            assert dict(answer.protection.attested).keys() == peers_of(swarm)
            assert not answer.protection.audits  # which would show rows to somebody else
            (said,) = answer.protection.said
            assert said.startswith("protection: attested; snp: a test")
        assert strict[-1].token_ids == plain[-1].token_ids
        known = swarm.client.rings.attested
        assert known is not None
        found = [known.of(peer) for peer in peers_of(swarm)]
        assert [one.entry for one in found if one] == ["a test"] * 3
        assert {one.binding.noise_key for one in found if one} == {n.noise_key for n in swarm.networks}


async def test_who_shows_nothing_or_something_else_takes_no_part_and_the_error_says_why(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_finder, "HEAR_WITHIN_S", 0.2)
    other = FakeChip(datetime.fromtimestamp(time.time(), UTC) - timedelta(days=1))
    debugged = attesting_on(chip(), lambda data: chip().report(data, policy=0x30000 | 1 << 19))
    shown = [None, attesting_on(other), debugged]
    async with swarm_of(tmp_path, checkpoint, *shown, resume_s=0.2) as swarm:
        await hear(swarm)
        with pytest.raises(NoCoverage) as caught:
            async with swarm.client.session(str(checkpoint), tokens=16, attested=True):
                pass
        said = caught.value.message
        assert "shows nothing" in said
        assert "its certificates do not end in a root of AMD" in said
        assert "its machine may be debugged" in said
        assert "--attested" in caught.value.next_command
        async with swarm.client.session(str(checkpoint), tokens=16) as session:  # whoever does not mind
            assert len(session.ring.route) == 3


async def test_a_quote_that_was_made_for_another_question_is_not_believed(
    tmp_path: Path, checkpoint: Path
) -> None:
    kept = chip().report(os.urandom(64))
    replay = attesting_on(chip(), lambda _: kept)
    async with swarm_of(tmp_path, checkpoint, replay, spans=[Span(0, 6)], resume_s=0.2) as swarm:
        await hear(swarm)
        with pytest.raises(NoCoverage, match="signed something else than it says"):
            async with swarm.client.session(str(checkpoint), tokens=16, attested=True):
                pass


async def test_a_route_takes_the_attested_replica_although_others_are_there(
    tmp_path: Path, checkpoint: Path
) -> None:
    shown = [None, attesting_on(chip()), None]
    async with swarm_of(tmp_path, checkpoint, *shown, spans=[Span(0, 6)] * 3) as swarm:
        await hear(swarm)
        for _ in range(5):
            async with swarm.client.session(str(checkpoint), tokens=16, attested=True) as session:
                assert [hop.address.peer for hop in session.ring.route] == [swarm.networks[1].peer]


async def test_nobody_is_waited_for_who_is_not_needed_and_nobody_for_ever(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def silent(data: bytes) -> bytes:
        released.wait(10)
        return chip().report(data)

    monkeypatch.setattr(attested, "ALL_WITHIN_S", 0.3)
    shown = [attesting_on(chip(), silent), attesting_on(chip())]
    async with swarm_of(tmp_path, checkpoint, *shown, spans=[Span(0, 6)] * 2) as swarm:
        await hear(swarm)
        async with swarm.client.session(str(checkpoint), tokens=16, attested=True) as session:
            assert session.ring.route[0].address.peer == swarm.networks[1].peer
        swarm.kill(1)
        with pytest.raises(ShoalError) as caught:
            async with swarm.client.session(str(checkpoint), tokens=16, attested=True):
                pass
        assert "did not answer in time" in caught.value.message or "reached" in caught.value.message
        known = swarm.client.rings.attested
        assert known is not None
        assert known.of(swarm.networks[0].peer) is None
        released.set()


async def test_when_the_attested_hop_is_lost_the_session_goes_on_over_another_attested_one_alone(
    tmp_path: Path, checkpoint: Path
) -> None:
    shown = [attesting_on(chip()), attesting_on(chip()), None]
    async with swarm_of(tmp_path, checkpoint, *shown, spans=[Span(0, 6)] * 3, resume_s=1.0) as swarm:
        await hear(swarm)
        async with swarm.client.session(str(checkpoint), tokens=32, attested=True) as session:
            await session.advance(PROMPT, GREEDY, more=True)
            first = kill_hop(swarm, session)
            await session.advance([1], GREEDY, more=True)
            assert {first, kill_hop(swarm, session)} == {0, 1}
            with pytest.raises(NoCoverage, match="list of measurements"):
                await session.advance([1], GREEDY, more=True)


async def test_a_peer_that_was_not_needed_is_asked_when_the_others_turn_out_to_be_gone(
    tmp_path: Path, checkpoint: Path
) -> None:
    async with two_replicas(tmp_path, checkpoint) as swarm:
        async with swarm.client.session(str(checkpoint), tokens=16, attested=True) as session:
            assert session.ring.route[0].address.peer == swarm.networks[0].peer
        swarm.kill(0)
        async with swarm.client.session(str(checkpoint), tokens=16, attested=True) as session:
            assert session.ring.route[0].address.peer == swarm.networks[1].peer


async def test_a_peer_of_another_format_makes_no_others_answer_unneeded(
    tmp_path: Path, checkpoint: Path
) -> None:
    def late(data: bytes) -> bytes:
        time.sleep(0.3)  # on the thread that makes quotes
        return chip().report(data)

    async with memory_swarm(tmp_path, checkpoint, []) as swarm:
        await swarm.add_node(Span(0, 6), attesting=attesting_on(chip()), format="bf16")
        await swarm.add_node(Span(0, 6), attesting=attesting_on(chip(), late))
        swarm.client.member.clock.wall = time.time
        swarm.client.rings.attest_by(ALLOWED, Roots(amd=chip().roots))
        await hear(swarm)
        async with swarm.client.session(str(checkpoint), tokens=16, format=FORMAT, attested=True) as session:
            assert session.ring.route[0].address.peer == swarm.networks[1].peer


async def test_a_node_that_has_restarted_with_a_new_key_is_asked_again(
    tmp_path: Path, checkpoint: Path
) -> None:
    shown = [attesting_on(chip()), attesting_on(chip())]
    async with swarm_of(tmp_path, checkpoint, *shown, spans=[Span(0, 3), Span(3, 6)]) as swarm:
        await hear(swarm)
        for _ in range(2):
            async with swarm.client.session(str(checkpoint), tokens=16, attested=True) as session:
                await session.advance([1], GREEDY)
                keys = [hop.noise_key for hop in session.ring.route]
                assert keys == [network.noise_key for network in swarm.networks]
            for network in swarm.networks:
                network.noise_key = os.urandom(32)
                for pipe in network.pipes:
                    await pipe.aclose()
                network.pipes.clear()
            await trio.testing.wait_all_tasks_blocked()


async def test_who_does_not_show_it_again_is_lost_to_its_sessions(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rings, "ATTEST_EVERY_S", 0.05)
    monkeypatch.setattr(rings, "RENEW_S", 0.0)
    debugged = False

    def report(data: bytes) -> bytes:
        return chip().report(data, policy=0x30000 | debugged << 19)

    turned = attesting_on(chip(), report)
    async with swarm_of(tmp_path, checkpoint, turned, spans=[Span(0, 6)], resume_s=0.2) as swarm:
        await hear(swarm)
        async with swarm.client.session(str(checkpoint), tokens=32, attested=True) as session:
            await session.advance(PROMPT, GREEDY, more=True)
            await trio.sleep(0.3)  # asked again meanwhile, and it has shown it again
            await session.advance([1], GREEDY, more=True)
            debugged = True
            with pytest.raises(NoCoverage, match="does not show any more what it runs on"):
                for _ in range(100):
                    await session.advance([1], GREEDY, more=True)
                    await trio.sleep(0.05)


async def test_a_hop_sends_to_no_other_machine_that_has_the_next_ones_identity(
    tmp_path: Path, checkpoint: Path
) -> None:
    async with swarm_of(tmp_path, checkpoint, *(attesting_on(chip()) for _ in THIRDS)) as swarm:
        first, second, _ = swarm.networks
        channel = await swarm.client.rings._pool.get(first.address, deadline_s=2)  # pyright: ignore[reportPrivateUsage]
        node, session = swarm.nodes[0], os.urandom(16)
        opening = Open(
            session,
            node.model.digest,
            node.format,
            *(0, 2, 16, 0, None),
            NextHop.of(second.address, bytes(32)),
            str(node.engine.numerics),
        )
        await channel.send(opening)
        await trio.sleep(0.1)
        assert node.server.sessions == 0
        right = msgspec.structs.replace(opening, next=NextHop.of(second.address, second.noise_key))
        await channel.send(right)
        with trio.fail_after(15):
            while node.server.sessions == 0:  # noqa: ASYNC110  it tells nobody
                await trio.sleep(0.01)


async def test_a_hop_takes_steps_of_no_other_machine_that_has_the_one_befores_identity(
    tmp_path: Path, checkpoint: Path
) -> None:
    async with swarm_of(tmp_path, checkpoint, *(attesting_on(chip()) for _ in THIRDS)) as swarm:
        await hear(swarm)
        async with swarm.client.session(str(checkpoint), tokens=32, attested=True) as session:
            await session.advance(PROMPT, GREEDY, more=True)
            before, here = (swarm.networks[i] for i in (0, 1))
            node = next(n for n, network in zip(swarm.nodes, swarm.networks, strict=True) if network is here)
            hop = node.server._sessions.get(session.ring.session)  # pyright: ignore[reportPrivateUsage]
            assert hop is not None
            assert node.server.has_client(swarm.client.network.peer)
            assert not node.server.has_client(before.peer)
            for key, taken in ((before.noise_key, True), (bytes(32), False)):
                way: Any = SimpleNamespace(peer=before.peer, noise_key=key)
                assert hop.takes_from(way) is taken


async def test_a_node_without_attest_says_so(tmp_path: Path, checkpoint: Path) -> None:
    async with swarm_of(tmp_path, checkpoint, None, spans=[Span(0, 6)]) as swarm:
        await hear(swarm)
        known = swarm.client.rings.attested
        assert known is not None
        channel = await swarm.client.rings._pool.get(swarm.networks[0].address, deadline_s=2)  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(NotAllowed, match=NOT_ATTESTING):
            await known.questions.ask(channel, swarm.nodes[0].served())
        assert swarm.nodes[0].served().attests == ""


async def test_without_a_list_it_is_said_what_to_write(tmp_path: Path, checkpoint: Path) -> None:
    async with memory_swarm(tmp_path, checkpoint, [Span(0, 6)]) as swarm:
        with pytest.raises(UsageError, match=r"measurements\.toml is not there"):
            async with swarm.client.session(str(checkpoint), tokens=16, attested=True):
                pass
        with pytest.raises(UsageError, match=r"measurements\.toml is not there"):
            await swarm.add_client(attested_only=True)


class Asked:
    """A channel to a peer that is asked and answers when the test does."""

    def __init__(self) -> None:
        self.peer, self.noise_key = PeerId("a peer"), os.urandom(32)
        self.questions = list[Attest]()

    async def send(self, message: Attest) -> None:
        await trio.lowlevel.checkpoint()
        self.questions.append(message)


async def test_evidence_that_was_not_asked_for_is_a_breach_of_the_protocol() -> None:
    questions = AttestationQuestions(ALLOWED, time.time)
    asked: Any = Asked()
    other: Any = Asked()
    served: Any = SimpleNamespace(digest="sha256:" + "0" * 64, numerics="n1/int8/auto/rows")
    with pytest.raises(RemoteProtocolError, match="nobody asked for"):
        questions.answered(asked, Attested(1), b"")
    failed = list[str]()

    async def ask() -> None:
        try:
            await questions.ask(asked, served)
        except ShoalError as error:
            failed.append(error.message)

    for payload, why in ((b"", "shows nothing"), (b"nonsense", "no evidence")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            number = asked.questions[-1].number
            with pytest.raises(RemoteProtocolError, match="another peer"):
                questions.answered(other, Attested(number), b"")
            questions.answered(asked, Attested(number, len(payload)), payload)
        assert why in failed[-1]
        questions.answered(asked, Attested(number, len(payload)), payload)  # once more, and too late
    assert len({question.nonce for question in asked.questions}) == 2


async def test_a_node_that_is_sent_evidence_hangs_up(tmp_path: Path, checkpoint: Path) -> None:
    async with memory_swarm(tmp_path, checkpoint, [Span(0, 6)]) as swarm:
        channel = await swarm.client.rings._pool.get(swarm.networks[0].address, deadline_s=2)  # pyright: ignore[reportPrivateUsage]
        await channel.send(Attested(1))
        with trio.fail_after(25):
            while not channel.closed:  # noqa: ASYNC110  it tells nobody
                await trio.sleep(0.01)
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            await session.advance(PROMPT, GREEDY)


async def test_a_hop_that_fails_is_replaced_by_one_that_had_not_been_asked_yet(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        two_replicas(tmp_path, checkpoint) as swarm,
        swarm.client.session(str(checkpoint), tokens=64, attested=True) as session,
    ):
        await session.advance(PROMPT, GREEDY)
        (hop,) = session.ring.route
        assert hop.address.peer == swarm.networks[0].peer
        runner = swarm.nodes[0].engine.runner
        monkeypatch.setattr(runner, "forward", lambda batch: [StepFailed("NaN")] * len(batch))
        await session.advance([5], GREEDY)
        (hop,) = session.ring.route
        assert hop.address.peer == swarm.networks[1].peer
