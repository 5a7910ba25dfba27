"""Audits of real sessions: whoever computes something else is named, and nobody else ever is."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

from shoal.client.answer import Answer
from shoal.client.audits import auditors
from shoal.client.audits.auditors import HERE, AuditJob, OwnAuditor, PeerAuditor, place_of, whereabouts_of
from shoal.client.audits.purse import BudgetPurse
from shoal.client.swarm import Swarm
from shoal.net.identity import Identity
from shoal.node import node
from shoal.node.admission import Admission
from shoal.node.audits.reveal import RevealDesk
from shoal.node.hop import Hop
from shoal.routing.reputation import REFUSAL, SHARED_FAULT
from shoal.swarm.announcement import AskedPrice
from shoal.swarm.audit_book import AuditBook
from shoal.testing.cheats import CHEATS, cheating
from shoal.testing.swarm import MemorySwarm, memory_swarm
from shoal.trust.audit import BUDGET
from shoal.trust.independence import apart
from shoal.types import Format, PeerAddress, PeerId, Span
from shoal.wire.messages import MAX_REVEALED, Open, Reveal, Revealed

SPANS = [Span(0, 2), Span(2, 4), Span(4, 6)]
PROMPT = [5, 9, 2, 31, 8, 77, 3] * 6
COUNT = 24
MIDDLE = SPANS[1]
WHOLE = 6.0
"""A budget with which every hop of every answer is audited, however often."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has no blocks, so others must audit."""

    async def can(*_: Any) -> bool:
        return False

    monkeypatch.setattr(OwnAuditor, "can", can)


@asynccontextmanager
async def asking(
    home: Path,
    checkpoint: Path,
    spans: list[Span],
    *,
    cheats: dict[int, str] | None = None,
    over: int = 1,
    format: Format = "int8",
    hosts: dict[int, str] | None = None,
    operators: dict[int, Identity] | None = None,
) -> AsyncGenerator[tuple[MemorySwarm, Swarm]]:
    """Nodes, of which some cheat, and a client that audits whole answers.

    Args:
        cheats: by the place of their node.
        over: the node that computes the middle, as long as it may.
        hosts: by the place of their node, where that says that it is; each elsewhere by itself.
        operators: by the place of their node, whose it announces to be.
    """
    async with memory_swarm(home, checkpoint, [], format=format) as swarm:
        for place, span in enumerate(spans):
            with pytest.MonkeyPatch.context() as patch:
                if cheats and place in cheats:
                    patch.setattr(node, "load_runner", cheating(cheats[place]))
                one, host = (operators or {}).get(place), (hosts or {}).get(place)
                await swarm.add_node(span, host=host, operator=one, format=format)
        client = await swarm.add_client(audit_budget=WHOLE, pin=(swarm.networks[over].peer,))
        client.audits.purse.chance = lambda: 0.999  # the last hop and window that there are
        yield swarm, client


async def answered(
    client: Swarm,
    folder: Path,
    prompt: list[int] = PROMPT,
    *,
    during: Callable[[Answer], None] = lambda _: None,
) -> Answer:
    answer = client.generate(str(folder), prompt, max_tokens=COUNT, protect="audited")
    async for _ in answer:
        during(answer)
    return answer


def distrusted(client: Swarm, peer: str) -> bool:
    return client.rings.finder.reputation.distrusted(PeerId(peer), trio.current_time())


def suspected(client: Swarm, swarm: MemorySwarm) -> list[int]:
    """The places of nodes that the client distrusts."""
    return [place for place, network in enumerate(swarm.networks) if distrusted(client, network.peer)]


# ---- cheats ----


@pytest.mark.parametrize("cheat", CHEATS)
async def test_a_cheat_is_named_by_who_has_the_weights(home: Path, checkpoint: Path, cheat: str) -> None:
    async with asking(home, checkpoint, SPANS, cheats={1: cheat}) as (swarm, client):
        if cheat == "replay":
            await answered(client, checkpoint, [1, 2, 3] * 14)
        found = (await answered(client, checkpoint)).protection
        (audit,) = found.cheats
        assert (audit.hop, audit.peer, audit.span) == (1, swarm.networks[1].peer, MIDDLE)
        assert audit.by == (HERE, f"{HERE}, its weights checked")
        assert "other rows than its blocks of this model give, at tokens" in audit.what
        assert {one.verdict for one in found.audits if one is not audit} <= {"same"}
        assert found.level == "fast"
        assert suspected(client, swarm) == [1]


@pytest.mark.parametrize("cheat", ["fine-tune", "skipped-block"])
async def test_a_cheat_is_named_by_two_other_peers_under_identities_that_nobody_knows(
    home: Path, checkpoint: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch, cheat: str
) -> None:
    clients: dict[PeerId, set[bool]] = {}
    begin = Admission.begin

    def noted(self: Admission, channel: Any, message: Open, *rest: Any) -> Any:
        clients.setdefault(channel.peer, set()).add(message.previous is None and message.next is None)
        return begin(self, channel, message, *rest)

    monkeypatch.setattr(Admission, "begin", noted)
    spans = [*SPANS, MIDDLE, Span(0, 6)]
    async with asking(home, checkpoint, spans, cheats={1: cheat}) as (swarm, client):
        found = (await answered(client, checkpoint)).protection
        (audit,) = found.cheats
        assert audit.peer == swarm.networks[1].peer
        assert set(audit.by) == {swarm.networks[3].peer, swarm.networks[4].peer}
        assert suspected(client, swarm) == [1]
        assert len(clients) > 2
        del clients[client.network.peer]  # all the others have asked one hop, once
        assert all(alone == {True} for alone in clients.values())


async def test_a_cheat_is_avoided_from_then_on_by_all_clients_of_the_machine_and_its_nodes(
    home: Path, checkpoint: Path
) -> None:
    async with asking(home, checkpoint, [*SPANS, MIDDLE], cheats={1: "noise"}) as (swarm, client):
        liar = swarm.networks[1].peer
        assert (await answered(client, checkpoint)).protection.cheats
        for one in (client, await swarm.add_client(audit_budget=WHOLE)):
            again = await answered(one, checkpoint)
            assert liar not in [stage.peer for stage in again.route]
            assert again.protection.level == "audited"
        book = AuditBook(client.settings.paths.audits)
        (conviction,) = book.read().convictions
        assert book.liars(conviction.at + 60) == {liar}
        assert book.liars(conviction.at - 1e6) == {liar}  # a clock that was set back
        assert book.liars(conviction.at + 10 * 86400) == set()
        elsewhere = await swarm.add_client(home.with_name("elsewhere"))
        assert not distrusted(elsewhere, liar)  # nobody was told


# ---- honest ones ----


@pytest.mark.parametrize("lost", [None, 0, 1, 2])
async def test_honest_hops_are_never_accused_also_after_losses(
    home: Path, checkpoint: Path, lost: int | None
) -> None:
    async with asking(home, checkpoint, [*SPANS, *SPANS]) as (swarm, client):

        def during(answer: Answer) -> None:
            if lost is not None and len(answer.token_ids) == 12:
                gone = answer.route[lost].peer
                swarm.kill(next(i for i, n in enumerate(swarm.networks) if n.peer == gone))

        answer = await answered(client, checkpoint, during=during)
        found = answer.protection
        assert len(answer.reroutes) == (lost is not None)
        assert [audit.verdict for audit in found.audits] == ["same"] * 3
        assert (found.level, found.faults) == ("audited", ())
        assert len(found.signed) == 3
        assert all(audit.tokens >= len(PROMPT) + COUNT - 1 for audit in found.audits)
        assert suspected(client, swarm) == []


async def test_honest_hops_are_never_accused_after_a_session_went_back(home: Path, checkpoint: Path) -> None:
    async with (
        asking(home, checkpoint, SPANS) as (swarm, client),
        client.session(str(checkpoint), tokens=256) as session,
    ):
        await session.step(PROMPT * 2)
        for said in ([60, 61, 62], [7, 7], list(range(40))):
            session.roll_back(33)
            await session.step(said)
            prompt = (PROMPT * 2)[:33]
            _, found = await client.audits.protect(session, prompt, said, None, "audited", 0)
            assert ([audit.verdict for audit in found.audits], found.faults) == (["same"] * 3, ())
        assert suspected(client, swarm) == []


async def test_most_answers_are_not_audited_and_what_audits_cost_stays_within_the_budget(
    home: Path, checkpoint: Path
) -> None:
    async with asking(home, checkpoint, SPANS) as (_, client):
        frugal = await client_of(client, audit_budget=BUDGET)
        audited = 0
        for number in range(12):
            answer = frugal.generate(str(checkpoint), [number + 3] * 40, max_tokens=2, protect="audited")
            async for _ in answer:
                pass
            audited += len(answer.protection.audits)
            assert answer.protection.level == "audited"
            assert answer.protection.share <= BUDGET
        assert 0 < audited < 6


async def client_of(client: Swarm, **options: Any) -> Swarm:
    """The same client with other settings."""
    changed = dataclasses.replace(client.settings, **options)
    client.audits.purse = BudgetPurse(client.audits.findings.book, changed)
    client.audits.purse.chance = lambda: 0.0
    return client


# ---- auditors that lie, and hops that do not show what they sent ----


async def test_an_auditor_that_accuses_falsely_is_alone_with_it(
    home: Path, checkpoint: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = [*SPANS, MIDDLE, MIDDLE, MIDDLE]
    async with asking(home, checkpoint, spans, cheats={3: "noise"}) as (swarm, client):
        order = iter([3, 4, 5])
        asked_in(monkeypatch, client, swarm, order)
        found = (await answered(client, checkpoint)).protection
        audit = next(one for one in found.audits if one.hop == 1)
        assert audit.verdict == "same"
        assert audit.by == tuple(swarm.networks[place].peer for place in (3, 4, 5))
        assert suspected(client, swarm) == [3]  # for some minutes, as any newcomer that fails
        assert AuditBook(client.settings.paths.audits).read().convictions == ()


@pytest.mark.parametrize("one", ["host", "operator"])
async def test_two_auditors_of_one_host_or_operator_name_nobody_and_one_elsewhere_is_asked_first(
    home: Path, checkpoint: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch, one: str
) -> None:
    spans = [*SPANS, MIDDLE, MIDDLE, MIDDLE]
    hosts, operators = dict.fromkeys((3, 4), "192.0.2.7"), dict.fromkeys((3, 4), Identity.ephemeral())
    both = {"hosts": hosts} if one == "host" else {"operators": operators}
    cheats = {3: "int4", 4: "int4"}  # the same rows, to the bit
    async with asking(home, checkpoint, spans, cheats=cheats, **both) as (swarm, client):
        choose = client.audits.auditors.peer
        asked_in(monkeypatch, client, swarm, iter([3, 4]))
        found = (await answered(client, checkpoint)).protection
        audit = next(one for one in found.audits if one.hop == 1)
        assert audit.by == tuple(swarm.networks[place].peer for place in (3, 4))
        assert (audit.verdict, found.level) == ("open", "fast")
        assert "may be one: nobody is blamed" in audit.what
        assert suspected(client, swarm) == []
        async with client.session(str(checkpoint), tokens=64) as session:
            await session.step([5, 6, 7])
            job = AuditJob(session.shape, session.ring.numerics, session.ring.codec, MIDDLE, [b""])
            tried = {swarm.networks[1].peer, swarm.networks[3].peer}
            near = [place_of(client.rings, swarm.networks[3].address)]
            for _ in range(8):
                chosen = choose(session, job, tried, near)
                assert chosen is not None and chosen.name == swarm.networks[5].peer
            chosen = choose(session, job, {*tried, swarm.networks[5].peer}, near)
            assert chosen is not None and chosen.name == swarm.networks[4].peer  # better than nobody


async def test_an_auditor_that_stalls_holds_an_answer_no_longer_than_all_audits_may_take(
    home: Path, checkpoint: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.client.audits.audits.PROTECT_WITHIN_S", 2.0)

    async def stalls(self: PeerAuditor, job: AuditJob) -> list[bytes]:
        await trio.sleep_forever()
        return []

    monkeypatch.setattr(PeerAuditor, "compute", stalls)
    async with asking(home, checkpoint, [*SPANS, *SPANS, *SPANS]) as (swarm, client):
        told_at = 0.0

        def during(answer: Answer) -> None:
            nonlocal told_at
            told_at = trio.current_time()

        answer = await answered(client, checkpoint, during=during)
        assert trio.current_time() - told_at < 20
        assert answer.finish_reason == "length"
        assert {audit.verdict for audit in answer.protection.audits} == {"open"}
        assert "has not computed all rows of an audit in time" in answer.protection.audits[0].what
        assert suspected(client, swarm) == []


async def test_one_auditors_word_alone_names_nobody(
    home: Path, checkpoint: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(home, checkpoint, [*SPANS, MIDDLE], cheats={3: "noise"}) as (swarm, client):
        asked_in(monkeypatch, client, swarm, iter([3]))
        found = (await answered(client, checkpoint)).protection
        audit = next(one for one in found.audits if one.hop == 1)
        assert (audit.verdict, found.level) == ("open", "fast")
        assert "nobody is blamed" in audit.what
        assert suspected(client, swarm) == []


async def test_a_machine_with_damaged_weights_of_its_own_blames_nobody(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = auditors.through
    monkeypatch.setattr(auditors, "through", lambda *asked: honest(*asked) * np.float32(1.01))
    monkeypatch.setattr(auditors, "changed_items", lambda *_: ["model.layers.2.mlp.down_proj.weight"])
    async with asking(home, checkpoint, SPANS) as (swarm, client):
        found = (await answered(client, checkpoint)).protection
        assert [audit.verdict for audit in found.audits] == ["open"] * 3
        assert all("nobody is blamed" in audit.what for audit in found.audits)
        assert (found.level, suspected(client, swarm)) == ("fast", [])


def asked_in(monkeypatch: pytest.MonkeyPatch, client: Swarm, swarm: MemorySwarm, order: Any) -> None:
    """Have the middle audited by these nodes, and nothing else."""

    def peer(session: Any, job: Any, tried: set[PeerId], near: Any) -> PeerAuditor | None:
        place = next(order, None) if job.span == MIDDLE else None
        if place is None:
            return None
        finder, shape = client.rings.finder, job.shape
        others = {n.peer for i, n in enumerate(swarm.networks) if i != place}
        route = finder.find(shape, job.numerics, len(job.rows), others, span=job.span)
        return PeerAuditor(route, client.member, client.settings, client.audits.auditors._identity)

    monkeypatch.setattr(client.audits.auditors, "peer", peer)


async def refuses(self: RevealDesk, channel: Any, message: Reveal, payload: bytes) -> None:
    channel.reply(Revealed(message.session, message.first, 0, 0, "I would rather not"))


async def shows_others(self: RevealDesk, channel: Any, message: Reveal, payload: bytes) -> None:
    size = message.tokens * 64 * 2
    await channel.send(Revealed(message.session, message.first, message.tokens, size), bytes(size))


async def shows_more(self: RevealDesk, channel: Any, message: Reveal, payload: bytes) -> None:
    size = (message.tokens + 1) * 64 * 2
    await channel.send(Revealed(message.session, message.first, message.tokens + 1, size), bytes(size))


async def floods(self: RevealDesk, channel: Any, message: Reveal, payload: bytes) -> None:
    for _ in range(8):
        await channel.send(Revealed(message.session, message.first, 0, MAX_REVEALED), bytes(MAX_REVEALED))


async def says_nothing(self: RevealDesk, channel: Any, message: Reveal, payload: bytes) -> None:
    pass


@pytest.mark.parametrize(
    ("how", "share"),
    [
        (refuses, REFUSAL),  # an honest hop may not keep them any more
        (says_nothing, REFUSAL),  # or its link may be slow
        (shows_others, SHARED_FAULT),
        (shows_more, SHARED_FAULT),
        (floods, SHARED_FAULT),
    ],
)
async def test_what_a_hop_does_not_show_counts_against_it_and_proves_nothing(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, how: Any, share: float
) -> None:
    monkeypatch.setattr(RevealDesk, "_reveal", how)
    monkeypatch.setattr("shoal.client.audits.audits.REVEAL_WITHIN_S", 0.3)
    monkeypatch.setattr("shoal.client.audits.auditors.ENOUGH_S", 0.3)
    async with asking(home, checkpoint, SPANS) as (swarm, client):
        answer = await answered(client, checkpoint)
        found = answer.protection
        assert len(answer.token_ids) == COUNT
        assert {audit.hop: audit.verdict for audit in found.audits} == {0: "same", 1: "open", 2: "open"}
        assert all("nothing is shown" in audit.what for audit in found.audits if audit.hop)
        assert (found.cheats, found.level) == ((), "fast")
        assert suspected(client, swarm) == []
        faults = [client.rings.finder.reputation._records[n.peer].faults for n in swarm.networks]
        assert faults == pytest.approx([share, share, 0.0], abs=0.01)


async def test_rows_that_are_not_kept_any_more_cannot_be_shown(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hop, "sent_rows", lambda *_: None)
    async with asking(home, checkpoint, SPANS) as (swarm, client):
        found = (await answered(client, checkpoint)).protection
        assert [audit.what for audit in found.audits if "not kept here any more" in audit.what]
        assert suspected(client, swarm) == []


async def test_who_asks_a_price_is_not_asked_to_audit(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        asking(home, checkpoint, [*SPANS, MIDDLE]) as (_, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        await session.step([5, 6, 7])
        job = AuditJob(session.shape, session.ring.numerics, session.ring.codec, MIDDLE, [b""])
        finder, price = client.rings.finder, AskedPrice(1, 1, b"p" * 20, 1, b"c" * 20)
        assert client.audits.auditors.peer(session, job, set()) is not None
        replace, found = msgspec.structs.replace, finder.serving(session.shape)
        priced = [replace(a, served=replace(a.served, price=price)) for a in found if a.served]
        monkeypatch.setattr(finder, "serving", lambda *_: priced)
        assert client.audits.auditors.peer(session, job, set()) is None


async def test_rows_that_attested_peers_alone_may_see_are_shown_to_no_auditor(
    home: Path, checkpoint: Path
) -> None:
    async with (
        asking(home, checkpoint, [*SPANS, MIDDLE]) as (_, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        await session.step([5, 6, 7])
        job = AuditJob(session.shape, session.ring.numerics, session.ring.codec, MIDDLE, [b""])
        middle = {session.ring.route[1].address.peer}
        assert client.audits.auditors.peer(session, job, middle) is not None
        hops = session.ring.places.hops
        hops[0].hop = dataclasses.replace(hops[0].hop, attested="tdx")
        assert client.audits.auditors.peer(session, job, middle) is None


def test_peers_at_one_address_are_taken_for_one_operator() -> None:
    one = whereabouts_of([PeerAddress(PeerId("a"), ("/ip4/192.0.2.7/tcp/1",), ("/ip4/198.51.100.1/tcp/2",))])
    other = whereabouts_of([PeerAddress(PeerId("b"), ("/ip4/192.0.2.7/tcp/9", "/p2p-circuit"))])
    assert one.hosts & other.hosts
    assert not apart(one, other)
    relayed = "/ip4/192.0.2.9/tcp/1/p2p/r/p2p-circuit"
    nowhere = whereabouts_of([PeerAddress(PeerId("c"), ("/memory/c", relayed))])
    assert (nowhere.hosts, apart(nowhere, one)) == (frozenset(), False)


def test_where_a_peer_was_seen_counts_and_what_it_says_does_not() -> None:
    """A liar says that it is where an honest peer is, to have that one left out as its double."""
    liar = PeerAddress(PeerId("l"), ("/ip4/192.0.2.7/tcp/1", "/ip4/198.51.100.1/tcp/1"))
    honest = PeerAddress(PeerId("h"), ("/ip4/192.0.2.7/tcp/9",))
    seen = {PeerId("l"): "203.0.113.4"}
    assert not apart(whereabouts_of([liar]), whereabouts_of([honest]))
    assert apart(whereabouts_of([liar], seen.get), whereabouts_of([honest], seen.get))
    over_a_relay = whereabouts_of([liar], {PeerId("l"): ""}.get)
    assert not over_a_relay.known


async def test_a_client_knows_at_which_host_its_channels_end(home: Path, checkpoint: Path) -> None:
    async with memory_swarm(home, checkpoint, SPANS) as swarm:
        swarm.networks[0].host = "203.0.113.4"
        client = swarm.client.rings.member.network.peer
        swarm.world.relayed.add(frozenset((swarm.networks[1].peer, client)))
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            await session.step([5, 6, 7])
            seen_at = swarm.client.rings.seen_at
            assert [seen_at(n.peer) for n in swarm.networks] == ["203.0.113.4", "", None]
            assert seen_at(PeerId("nobody")) is None


# ---- what cannot be audited ----


@pytest.mark.parametrize(
    ("cheat", "least", "most", "exponents"),
    [
        (None, 0.0, 0.02, range(13)),
        ("noise", 5e-4, 0.02, range(13)),
        ("skipped-block", 0.02, 2.0, range(40, 129)),
    ],
)
async def test_where_bits_are_not_the_same_everywhere_it_is_told_how_far_a_hop_is_from_others_and_no_more(
    home: Path, checkpoint: Path, cheat: str | None, least: float, most: float, exponents: range
) -> None:
    cheats = {1: cheat} if cheat else None
    async with asking(home, checkpoint, SPANS, cheats=cheats, format="bf16") as (swarm, client):
        found = (await answered(client, checkpoint)).protection
        assert (found.asked, found.level, found.cheats) == ("audited", "fast", ())
        assert "n1/bf16/auto/batch" in found.faults[0]
        assert len(found.signed) == 3
        apart = {audit.hop: audit.residual for audit in found.audits}
        assert sorted(apart) == [0, 1]  # what the last one sent is not kept
        assert apart[1] is not None and least <= apart[1] <= most, apart
        (middle,) = (audit for audit in found.audits if audit.hop == 1)
        assert middle.fingerprint is not None and middle.fingerprint.exponents in exponents
        assert "of the 128 largest elements of 32 rows" in middle.what
        assert middle.shown()["fingerprint"]["points"] == 128
        assert suspected(client, swarm) == []


async def test_a_record_that_cannot_be_read_is_told_and_the_answer_stays(
    home: Path, checkpoint: Path
) -> None:
    async with asking(home, checkpoint, SPANS) as (_, client):
        client.settings.paths.audits.write_text("{]")
        answer = await answered(client, checkpoint)
        assert len(answer.token_ids) == COUNT
        assert answer.protection.level == "fast"
        assert "is no record of audits" in answer.protection.faults[0]
