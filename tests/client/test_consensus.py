"""Consensus over real sessions: replicas that lie or are lazy are named, and nobody else ever is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from shoal.client.answer import Answer
from shoal.client.audits.auditors import HERE
from shoal.client.ring.hop import HopRefused
from shoal.client.swarm import Swarm
from shoal.errors import BadWeights, ChannelClosed
from shoal.node.hop import Hop
from shoal.node.receipts import ReceiptDesk
from shoal.routing.reputation import NEWCOMER
from shoal.swarm.audit_book import AuditBook
from shoal.testing.swarm import MemorySwarm
from shoal.trust.rows import HASH, RowLog
from shoal.types import PeerId

from .test_audits import COUNT, MIDDLE, PROMPT, SPANS, asking, home, no_weights, suspected

__all__ = ["home", "no_weights"]

NINE = [*SPANS, *SPANS, *SPANS]
"""Three replicas; the middle of the answer is computed by the second node."""


async def answered(client: Swarm, folder: Path, **options: Any) -> Answer:
    answer = client.generate(str(folder), PROMPT, max_tokens=COUNT, protect="consensus", **options)
    async for _ in answer:
        pass
    return answer


def the_desk(swarm: MemorySwarm, place: int) -> ReceiptDesk:
    return swarm.nodes[place].server._receipts


def hide(went: RowLog, sent: int) -> None:
    """Have no rows in a log, or some at every position."""
    leaves = [went.leaf(n) if any(went.leaf(n)) else b"?" * HASH for n in range(len(went))]
    went.note(0, len(leaves), b"".join(leaves) if sent else b"")


# ---- honest ones ----


async def test_three_replicas_with_the_same_boundaries_agree_to_the_bit(home: Path, checkpoint: Path) -> None:
    async with asking(home, checkpoint, NINE) as (swarm, client):
        answer = await answered(client, checkpoint)
        found = answer.protection
        assert (found.asked, found.level, found.faults, found.audits) == ("consensus", "consensus", (), ())
        assert found.replicas[0] == tuple(stage.peer for stage in answer.route) == found.signed
        assert len({peer for replica in found.replicas for peer in replica}) == 9
        assert (found.extra, answer.receipts is not None) == (2.0, True)
        assert "3 replicas of each hop, for 2.0 times its compute more" in found.said[0]
        with trio.fail_after(25):
            while any(node.server.sessions for node in swarm.nodes):  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert suspected(client, swarm) == []


@pytest.mark.parametrize("own_ends", ["0:0", "1:1"])
async def test_a_session_that_went_back_and_blocks_of_ones_own_change_nothing(
    home: Path, checkpoint: Path, own_ends: str
) -> None:
    async with asking(home, checkpoint, NINE) as (swarm, _):
        client = await swarm.add_client(private_ends=own_ends)
        async with client.session(str(checkpoint), tokens=256) as session:
            await session.step(PROMPT * 2)
            for said in ([60, 61, 62], [7, 7], list(range(40))):
                session.roll_back(33)
                await session.step(said)
                prompt = (PROMPT * 2)[:33]
                _, found = await client.audits.protect(session, prompt, said, None, "consensus", 0)
                assert (found.level, found.faults, found.audits) == ("consensus", (), ())


async def test_with_two_replicas_it_is_said_that_there_are_no_more(home: Path, checkpoint: Path) -> None:
    async with asking(home, checkpoint, [*SPANS, *SPANS]) as (_, client):
        found = (await answered(client, checkpoint)).protection
        assert (found.level, len(found.replicas)) == ("consensus", 2)
        assert found.faults == ("2 of 3 replicas were to be had: too few others serve its blocks",)


@pytest.mark.parametrize("format", ["int8", "bf16"])
async def test_without_replicas_or_bits_that_all_have_an_answer_has_less_than_was_asked_for(
    home: Path, checkpoint: Path, format: Any
) -> None:
    spans = SPANS if format == "int8" else NINE
    async with asking(home, checkpoint, spans, format=format) as (swarm, client):
        answer = await answered(client, checkpoint)
        assert (len(answer.token_ids), answer.protection.level) == (COUNT, "fast")
        why = "1 of 3 replicas" if format == "int8" else "bits are the same everywhere"
        assert why in answer.protection.faults[0]
        assert suspected(client, swarm) == []


# ---- who lies ----


@pytest.mark.parametrize("cheat", ["noise", "skipped-block"])
async def test_a_hop_of_the_answer_that_lies_is_named(home: Path, checkpoint: Path, cheat: str) -> None:
    async with asking(home, checkpoint, NINE, cheats={1: cheat}) as (swarm, client):
        found = (await answered(client, checkpoint)).protection
        (audit,) = found.cheats
        assert (audit.hop, audit.peer, audit.span) == (1, swarm.networks[1].peer, MIDDLE)
        assert (audit.by, audit.replica, found.level) == ((HERE,), 0, "fast")
        assert suspected(client, swarm) == [1]
        (conviction,) = AuditBook(client.settings.paths.audits).read().convictions
        assert conviction.peer == swarm.networks[1].peer


async def test_a_replica_that_lies_is_named_a_lazy_one_left_out_and_the_answer_confirmed(
    home: Path, checkpoint: Path
) -> None:
    async with asking(home, checkpoint, NINE, cheats={4: "fine-tune"}) as (swarm, client):
        said: list[bytes] = []
        for place, node in enumerate(swarm.nodes):

            def commits(
                work: Any, tokens: int, log: Any, desk: Any = node.server._receipts, at: int = place
            ) -> bytes:
                if at == 7:
                    return (
                        said[0] if said else bytes(32)
                    )  # it has computed nothing, and says what another has said
                said.append(ReceiptDesk._commitment(desk, work, tokens, log))
                return said[-1]

            the_desk(swarm, place)._commitment = commits  # type: ignore[method-assign]
        found = (await answered(client, checkpoint)).protection
        (audit,) = found.audits
        lazy = swarm.networks[7].peer
        assert (audit.peer, audit.verdict, bool(audit.replica)) == (swarm.networks[4].peer, "cheat", True)
        assert f"{lazy} shows other receipts than it had committed to" in found.faults
        assert (found.level, found.cheats) == ("consensus", ())
        assert found.extra > 2.0  # a third party has computed, too
        assert suspected(client, swarm) == [4, 7]
        (conviction,) = AuditBook(client.settings.paths.audits).read().convictions
        assert conviction.peer == swarm.networks[4].peer  # the other has a fault, soon forgiven


@pytest.mark.parametrize(("places", "sent"), [([1], 0), ([4], 0), ([2, 5, 8], (1 << 32) - 1)])
async def test_a_hop_that_signs_for_other_positions_is_told_and_its_receipts_count_for_nothing(
    home: Path, checkpoint: Path, places: list[int], sent: int
) -> None:
    async with asking(home, checkpoint, NINE) as (swarm, client):

        def altered(made: Any, work: Any, tokens: int, log: Any) -> Any:
            log = log.copy(tokens)
            hide(log.went, sent)
            return made(work, tokens, log)

        for liar in (the_desk(swarm, place) for place in places):
            for name in ("_signed", "_commitment"):
                setattr(liar, name, partial(altered, getattr(liar, name)))
        found = (await answered(client, checkpoint)).protection
        peers = [swarm.networks[place].peer for place in places]
        assert all(any(peer in fault for fault in found.faults) for peer in peers)
        assert found.level == ("consensus" if places == [4] else "fast")
        assert found.audits == ()


async def test_what_this_machine_computes_decides_against_two_replicas_that_agree(
    home: Path, checkpoint: Path
) -> None:
    cheats = {1: "int4", 4: "int4"}  # the same rows, to the bit
    async with asking(home, checkpoint, NINE, cheats=cheats) as (swarm, client):
        found = (await answered(client, checkpoint)).protection
        assert {audit.peer for audit in found.audits} == {swarm.networks[place].peer for place in (1, 4)}
        assert {audit.by for audit in found.audits} == {(f"{HERE}, its weights checked",)}
        assert (found.level, suspected(client, swarm)) == ("fast", [1, 4])


async def test_weights_that_cannot_be_read_are_not_here_and_fail_no_answer(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_span(*_: Any) -> bool:
        raise BadWeights("they are cut")

    monkeypatch.setattr("shoal.client.audits.auditors.has_span", has_span)
    async with asking(home, checkpoint, [*NINE, MIDDLE], cheats={1: "noise"}) as (swarm, client):
        found = (await answered(client, checkpoint)).protection
        assert [audit.peer for audit in found.audits] == [swarm.networks[1].peer]
        assert HERE not in found.audits[0].by


async def test_without_weights_of_its_own_a_client_asks_another_peer_who_is_right(
    home: Path, checkpoint: Path, no_weights: None
) -> None:
    async with asking(home, checkpoint, [*NINE, MIDDLE], cheats={1: "noise"}) as (swarm, client):
        found = (await answered(client, checkpoint)).protection
        (audit,) = found.cheats
        replicas = {peer for replica in found.replicas for peer in replica}
        (third,) = audit.by
        assert third in {n.peer for n in swarm.networks} - replicas
        assert suspected(client, swarm) == [1]


async def test_nobody_is_named_where_those_who_agree_may_be_one(
    home: Path, checkpoint: Path, no_weights: None
) -> None:
    hosts = dict.fromkeys(range(1, 10, 3), "192.0.2.7") | {9: "192.0.2.7"}
    async with asking(home, checkpoint, [*NINE, MIDDLE], cheats={1: "noise"}, hosts=hosts) as (swarm, client):
        found = (await answered(client, checkpoint)).protection
        assert (found.level, found.audits) == ("fast", ())
        assert any("may be one operator's" in fault for fault in found.faults)
        assert suspected(client, swarm) == []


async def test_a_hop_that_cannot_commit_is_not_named_and_the_answer_is_not_confirmed(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = ReceiptDesk._get

    async def of_an_older_version(self: ReceiptDesk, channel: Any, message: Any, payload: bytes) -> None:
        older = type(message)(message.session, message.nonce, message.tokens, message.first)
        await get(self, channel, older if self._peer == old else message, payload)

    monkeypatch.setattr(ReceiptDesk, "_get", of_an_older_version)
    async with asking(home, checkpoint, NINE) as (swarm, client):
        old = swarm.networks[1].peer
        found = (await answered(client, checkpoint)).protection
        assert (found.level, found.audits) == ("fast", ())
        assert any(f"{old} commits to nothing: its version" in fault for fault in found.faults)


# ---- who stalls ----


def blamed(client: Swarm, swarm: MemorySwarm) -> list[int]:
    """The places of nodes that something was held against."""
    reputation, now = client.rings.finder.reputation, trio.current_time()
    return [place for place, n in enumerate(swarm.networks) if reputation.trust(n.peer, now) < NEWCOMER]


@pytest.mark.parametrize(("commits", "had_s"), [(False, 0.1), (False, 4.0), (True, 0.1)])
async def test_who_stalls_until_its_time_is_over_is_blamed_if_it_had_enough_and_nobody_else_is(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, commits: bool, had_s: float
) -> None:
    """The liar says nothing, so that no third party has time to find it out."""
    monkeypatch.setattr("shoal.client.audits.consensus.LEAST_S", 6.0)
    monkeypatch.setattr("shoal.client.audits.auditors.ENOUGH_S", had_s)
    get = ReceiptDesk._get

    async def stalls(self: ReceiptDesk, channel: Any, message: Any, payload: bytes) -> None:
        if self._peer != liar or (commits and message.commit):
            await get(self, channel, message, payload)

    monkeypatch.setattr(ReceiptDesk, "_get", stalls)
    async with asking(home, checkpoint, NINE, cheats={1: "noise", 4: "fine-tune"}) as (swarm, client):
        liar = swarm.networks[1].peer
        found = (await answered(client, checkpoint)).protection
        assert found.level == "fast"
        assert [audit.peer for audit in found.audits] == [swarm.networks[4].peer]  # there was time for it
        assert blamed(client, swarm) == ([4] if had_s == 4.0 else [1, 4])


async def test_a_replica_that_keeps_its_rows_is_left_out_and_who_keeps_them_is_blamed(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.client.audits.consensus.LEAST_S", 6.0)
    monkeypatch.setattr("shoal.client.audits.replicas.ENOUGH_S", 0.1)
    take = Hop.take

    def keeps(self: Hop, step: Any, payload: bytes) -> None:
        if self.engine is not stalls:
            take(self, step, payload)

    monkeypatch.setattr(Hop, "take", keeps)
    async with asking(home, checkpoint, NINE) as (swarm, client):
        stalls = swarm.nodes[4].server.engine
        found = (await answered(client, checkpoint)).protection
        assert (found.level, len(found.replicas)) == ("consensus", 2)
        assert any("a replica has not computed the answer" in fault for fault in found.faults)
        assert 4 in blamed(client, swarm)
        assert len(blamed(client, swarm)) <= 2  # it, and a neighbour where one says that it sent on


async def test_a_hop_that_cannot_reach_the_next_is_not_blamed_for_it(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(home, checkpoint, NINE) as (swarm, client):
        over = client.rings.open_over
        refused: list[list[PeerId]] = []

        async def opens(route: Any, *given: Any, **more: Any) -> Any:
            peers = [hop.address.peer for hop in route]
            if swarm.networks[1].peer not in peers and not refused:
                refused.append(peers)
                swarm.world.kill(peers[1])
                raise HopRefused(peers[0], ChannelClosed("it cannot be reached"), peers[1])
            return await over(route, *given, **more)

        monkeypatch.setattr(client.rings, "open_over", opens)
        await answered(client, checkpoint)
        (route,) = refused
        assert [swarm.networks[place].peer for place in blamed(client, swarm)] == [route[1]]
