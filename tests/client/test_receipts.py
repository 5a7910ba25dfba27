"""Receipts of real sessions: all hold, also after losses and roll-backs; who gives bad ones or none pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from shoal.client.answer import Answer
from shoal.client.receipts.pull import AnswerReceipts, pull_receipts
from shoal.client.sampling import Sampling
from shoal.client.speculation import gain, sources, speculation
from shoal.client.speculation.controller import WindowPlan
from shoal.executor.engine import StepOutput
from shoal.ledger.contracts.evidence import countersign, registry_domain
from shoal.ledger.delegate import Delegate, delegate_file, write_delegate
from shoal.ledger.vouchers.keys import ChainKey
from shoal.net.identity import verify
from shoal.node.hop import Hop
from shoal.node.receipts import ReceiptDesk
from shoal.routing.reputation import Reputation
from shoal.testing.swarm import MemorySwarm
from shoal.trust.answer import check_answer, read_kept_answer
from shoal.trust.rows import HASH, windows
from shoal.types import Format, PeerId
from shoal.wire.messages import Step

from .conftest import THIRDS, memory_swarm

PROMPT = [5, 9, 2, 31, 8, 77, 3] * 6
COUNT = 40


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses are sent wherever there are any, whether they pay or not."""
    monkeypatch.setattr(sources, "choose_plan", lambda _: WindowPlan(3, 4))
    monkeypatch.setattr(speculation, "LEAST_LIKELY", 0.0)
    monkeypatch.setattr(gain, "TRIAL", 1 << 30)


async def answered(
    swarm: MemorySwarm,
    folder: Path,
    prompt: list[int] = PROMPT,
    *,
    during: Callable[[Answer], None] = lambda _: None,
) -> tuple[Answer, AnswerReceipts]:
    answer = swarm.client.generate(str(folder), prompt, max_tokens=COUNT, receipts=True)
    async for _ in answer:
        during(answer)
    assert answer.receipts is not None
    return answer, answer.receipts


def lose(swarm: MemorySwarm, place: int) -> Callable[[Answer], None]:
    """Kills the hop at ``place`` of an answer's route, once, amid the answer."""
    lost: list[PeerId] = []

    def during(answer: Answer) -> None:
        if len(answer.token_ids) == 20 and not lost:
            lost.append(answer.route[place].peer)
            swarm.kill(next(i for i, n in enumerate(swarm.networks) if n.peer == lost[0]))

    return during


@pytest.mark.parametrize(
    ("format", "wire"), [("fp32", "auto"), ("int8", "auto"), ("int8", "int8"), ("bf16", "bfloat16")]
)
async def test_every_hop_signs_what_it_has_done_and_all_of_it_fits(
    home: Path, checkpoint: Path, format: Format, wire: str
) -> None:
    async with memory_swarm(home, checkpoint, THIRDS, format=format, wire=wire) as swarm:
        answer, found = await answered(swarm, checkpoint)
        assert (found.faults, found.uncompared) == ((), 0)
        kept = found.kept
        assert kept.tokens >= len(kept.token_ids) - 1
        assert kept.token_ids == (*PROMPT, *answer.token_ids)
        assert len(kept.sent) == kept.tokens * HASH
        assert [len(hop.receipts) for hop in kept.hops] == [windows(kept.tokens)] * 3
        assert [hop.span for hop in kept.hops] == THIRDS
        again = read_kept_answer(kept.encoded(), "answer.json")
        assert again == kept
        assert check_answer(again, verify) == []


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("format", "uncompared"), [("int8", False), ("bf16", True)])
async def test_after_a_loss_all_receipts_hold(
    home: Path, checkpoint: Path, place: int, format: Format, uncompared: bool
) -> None:
    """Where bits are not the same everywhere, the new hop does not say that it sent what the lost one did."""
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS], format=format) as swarm:
        answer, found = await answered(swarm, checkpoint, during=lose(swarm, place))
        assert [change.way for change in answer.reroutes] == ["resend"]
        assert found.faults == ()
        assert all(hop.receipts for hop in found.kept.hops)
        assert bool(found.uncompared) == (uncompared and place < 2)


async def test_a_hop_whose_own_bits_are_exact_claims_none_of_a_lost_one_in_a_session_that_promises_none(
    home: Path, checkpoint: Path
) -> None:
    async with memory_swarm(home, checkpoint, [THIRDS[0], THIRDS[2]], format="int8") as swarm:
        await swarm.add_node(THIRDS[1], format="int8", kernels="torch")
        answer = swarm.client.generate(str(checkpoint), PROMPT, max_tokens=COUNT, receipts=True)
        async for _ in answer:
            if len(answer.token_ids) == 20 and len(swarm.nodes) == 3:
                await swarm.add_node(THIRDS[1], format="int8")
                swarm.kill(2)
        found = answer.receipts
        assert found is not None
        assert [change.way for change in answer.reroutes] == ["resend"]
        assert found.kept.numerics == "n1/int8/auto/any"
        assert found.kept.hops[1].peer == swarm.networks[3].peer
        assert found.faults == ()
        assert found.uncompared


async def test_eight_sessions_that_guess_ahead_and_lose_a_hop_have_whole_chains(
    home: Path, checkpoint: Path, eager: None
) -> None:
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS], format="int8") as swarm:
        found: list[tuple[Answer, AnswerReceipts]] = []

        async def one(number: int) -> None:
            prompt = [3 + number, *([7, 9 + number, 4, 11] * 6)]
            found.append(await answered(swarm, checkpoint, prompt, during=strike))

        strike = lose(swarm, 1)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        assert len(found) == 8
        assert any(answer.reroutes for answer, _ in found)
        counts = [answer.timing.speculation for answer, _ in found]
        assert sum(count.guessed for count in counts) > sum(count.accepted for count in counts) > 0
        for answer, receipts in found:
            assert (receipts.faults, receipts.uncompared) == ((), 0)
            assert receipts.kept.token_ids[receipts.kept.prompt_tokens :] == tuple(answer.token_ids)
            assert all(hop.receipts for hop in receipts.kept.hops)


async def test_a_session_that_went_back_and_on_has_receipts_of_what_it_is_now(
    home: Path, checkpoint: Path
) -> None:
    async with (
        memory_swarm(home, checkpoint, THIRDS, format="int8") as swarm,
        swarm.client.session(str(checkpoint), tokens=128) as session,
    ):
        await session.step(PROMPT)
        first = await pull_receipts(session, PROMPT, [], None)
        session.roll_back(10)
        await session.step([60, 61, 62])
        second = await pull_receipts(session, PROMPT[:10], [60, 61, 62], None)
        assert first.faults == second.faults == ()
        assert first.kept.hops[0].receipts[0].came != second.kept.hops[0].receipts[0].came
        assert second.kept.tokens == 13


async def test_private_ends_are_no_part_of_the_receipts_and_their_rows_are_known(
    home: Path, checkpoint: Path
) -> None:
    spans = THIRDS
    async with memory_swarm(home, checkpoint, spans, format="int8", private_ends="1:1") as swarm:
        _, found = await answered(swarm, checkpoint)
        assert found.faults == ()
        assert found.kept.sent
        assert (found.kept.hops[0].start, found.kept.hops[-1].end) == (1, 5)


async def test_where_a_liar_was_lost_nobody_who_is_there_pays_for_its_rows(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_swarm(home, checkpoint, THIRDS, format="int8") as swarm:
        liar, honest, blamed = swarm.nodes[1].engine, Hop._send, list[PeerId]()  # pyright: ignore[reportPrivateUsage]
        liar.decode_steps = None

        def send(self: Hop, step: Step, rows: int, result: StepOutput) -> object:
            if self.engine is liar:
                result = replace(result, payload=bytes(len(result.payload)))
            return honest(self, step, rows, result)

        def failed(_: Reputation, peer: PeerId, now: float, share: float = 1.0) -> None:
            blamed.append(peer)

        monkeypatch.setattr(Hop, "_send", send)
        answer = swarm.client.generate(str(checkpoint), PROMPT, max_tokens=COUNT, receipts=True)
        async for _ in answer:
            if len(answer.token_ids) == 20 and len(swarm.nodes) == 3:
                await swarm.add_node(THIRDS[1], format="int8")
                swarm.kill(1)
                monkeypatch.setattr(Reputation, "failed", failed)
        found = answer.receipts
        assert found is not None
        assert [change.way for change in answer.reroutes] == ["resend"]
        assert [(fault.kind, fault.hops, fault.window) for fault in found.faults] == [("links", (), 0)]
        entered = [hop.entered for hop in found.kept.hops]
        assert entered[1] >= len(PROMPT) + 19
        assert (entered[0], entered[2]) == (0, 0)
        assert not {PeerId(hop.peer) for hop in found.kept.hops} & set(blamed)
        again = read_kept_answer(found.kept.encoded(), "answer.json")
        assert check_answer(again, verify) == list(found.faults)


# ---- hops that give none, or bad ones ----


def trust(swarm: MemorySwarm, peer: str) -> float:
    return swarm.client.rings.finder.reputation.trust(PeerId(peer), trio.current_time())


async def test_a_hop_that_is_silent_when_asked_loses_reputation_and_not_the_answer(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReceiptDesk, "_reply", lambda *_: None)
    async with (
        memory_swarm(home, checkpoint, THIRDS) as swarm,
        swarm.client.session(str(checkpoint), tokens=128) as session,
    ):
        await session.step(PROMPT)
        peers = [hop.address.peer for hop in session.ring.route]
        before = [trust(swarm, peer) for peer in peers]
        with trio.fail_after(25):
            found = await pull_receipts(session, PROMPT, [], Sampling(), timeout_s=0.2)
        assert [fault.kind for fault in found.faults] == ["missing"] * 3
        assert "did not reply within" in found.kept.hops[0].missing
        assert all(trust(swarm, peer) < b for peer, b in zip(peers, before, strict=True))
        await session.step([7])  # and goes on


async def test_a_hop_that_signs_other_rows_than_it_computed_is_at_odds_with_the_next(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_swarm(home, checkpoint, THIRDS, format="int8") as swarm:
        liar = swarm.nodes[1].server
        honest = Hop.worked

        async def worked(self: Hop, tokens: int) -> object:
            log = await honest(self, tokens)
            if self.client in liar.channels.all() and self.opened.start == 2:
                log.went.note(33, tokens - 33, b"x" * HASH * (tokens - 33))
            return log

        monkeypatch.setattr(Hop, "worked", worked)
        _, found = await answered(swarm, checkpoint)
        (fault,) = found.faults
        assert (fault.kind, fault.hops, fault.window) == ("links", (1, 2), 1)
        assert "at tokens 32 to 63" in fault.what
        blamed = [trust(swarm, hop.peer) for hop in found.kept.hops]
        assert blamed[0] > blamed[1] and blamed[0] > blamed[2]


async def test_nodes_that_have_staked_counter_sign_what_they_sign(home: Path, checkpoint: Path) -> None:
    key = ChainKey.from_secret(b"\x11" * 32)
    write_delegate(delegate_file(home), Delegate(key.secret, 31337, b"\x22" * 20))
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        _, found = await answered(swarm, checkpoint)
    assert found.faults == ()
    kept = read_kept_answer(found.kept.encoded(), "answer.json")
    domain = registry_domain(31337, b"\x22" * 20)
    for index, hop in enumerate(kept.hops):
        for receipt, one in zip(kept.receipts(index), hop.receipts, strict=True):
            assert one.countersignature == countersign(key, domain, receipt)
