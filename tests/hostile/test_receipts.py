"""Who asks for receipts, and who gives them, with ill will: bounded, and nobody innocent pays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from shoal.client.receipts.pull import pull_receipts
from shoal.net.identity import verify
from shoal.node.hop import Hop
from shoal.node.receipts import ReceiptDesk
from shoal.testing.byhand import MINE, THEIRS, ByHand, a_step, an_open, by_hand, rows
from shoal.testing.swarm import memory_swarm
from shoal.trust.consensus import commitment
from shoal.trust.receipt import Work, whole_receipts
from shoal.trust.signing import MAX_QUESTIONS
from shoal.types import Span
from shoal.wire.messages import MAX_WINDOWS, Failed, GetReceipts, Opened, Receipts, SignedWindow

WHOLE = [Span(0, 6)]
WIDTH = 64


async def begun(client: ByHand, digest: Any) -> Opened:
    opened, _ = await client.ask(an_open(digest, 6))
    assert isinstance(opened, Opened)
    await client.ask(a_step(WIDTH), rows(WIDTH))
    return opened


async def asked(client: ByHand, nonce: bytes, **changes: Any) -> Receipts:
    fields: dict[str, Any] = {"session": MINE, "nonce": nonce, "tokens": 2} | changes
    reply, _ = await client.ask(GetReceipts(**fields))
    assert isinstance(reply, Receipts)
    return reply


async def test_a_client_that_asks_again_cannot_have_an_honest_hop_contradict_itself(
    tmp_path: Path, checkpoint: Path
) -> None:
    """It asks, goes back, sends other rows, and asks again with the same nonce, whole and in parts."""
    async with (
        memory_swarm(tmp_path / "home", checkpoint, WHOLE) as swarm,
        by_hand(swarm.world.network(), swarm.networks[0].address) as client,
    ):
        first = await begun(client, swarm.model.digest)
        nonce = os.urandom(16)
        honest = await asked(client, nonce)
        assert len(honest.windows) == 1
        await client.ask(a_step(WIDTH, number=2), rows(WIDTH, value=0.5))
        assert await asked(client, nonce) == honest
        assert (await asked(client, os.urandom(16))).windows[0].came != honest.windows[0].came
        again = await asked(client, nonce)
        assert (again.windows, "nonce" in again.refused) == ((), True)
        async with by_hand(swarm.world.network(), swarm.networks[0].address) as other:
            opened, _ = await other.ask(an_open(swarm.model.digest, 6, THEIRS))
            assert isinstance(opened, Opened)
            assert opened.opening != first.opening != bytes(16)


async def test_what_a_hop_has_committed_to_is_what_it_signs_whatever_comes_between(
    tmp_path: Path, checkpoint: Path
) -> None:
    """The hop before sends other rows between the commitment and the receipts."""
    async with (
        memory_swarm(tmp_path / "home", checkpoint, WHOLE) as swarm,
        by_hand(swarm.world.network(), swarm.networks[0].address) as client,
    ):
        opened = await begun(client, swarm.model.digest)
        nonce, peer = os.urandom(16), swarm.networks[0].peer
        said = (await asked(client, nonce, commit=True)).commitment
        await client.ask(a_step(WIDTH, number=2), rows(WIDTH, value=0.5))
        (one,) = (await asked(client, nonce)).windows
        (hop,) = swarm.nodes[0].server._sessions  # pyright: ignore[reportPrivateUsage]
        work = Work(MINE, nonce, opened.opening, 0, 0, 6, swarm.model.digest, hop.opened.numerics, "float32")
        (receipt,) = whole_receipts(work, 2, [one])
        assert verify(peer, receipt.signed, one.signature)
        assert commitment(nonce, peer, [receipt]) == said
        assert (await asked(client, os.urandom(16))).windows[0].came != one.came
        other = os.urandom(16)
        await asked(client, other, commit=True)
        assert "no commitment" in (await asked(client, other, tokens=1)).refused


async def test_nobody_fills_the_cache_of_a_hop_whose_session_goes_on(
    tmp_path: Path, checkpoint: Path
) -> None:
    async with (
        memory_swarm(tmp_path / "home", checkpoint, WHOLE) as swarm,
        by_hand(swarm.world.network(), swarm.networks[0].address) as client,
    ):
        await begun(client, swarm.model.digest)
        before = (await asked(client, os.urandom(16))).windows[0]
        fill = msgspec.structs.replace(a_step(WIDTH), number=0, wanted=0, hops_left=0)
        reply, _ = await client.ask(fill, rows(WIDTH, value=0.5))
        assert isinstance(reply, Failed) and "only fills caches" in reply.message
        after = (await asked(client, os.urandom(16))).windows[0]
        assert (after.sent, after.came, after.went) == (before.sent, before.came, before.went)


async def test_questions_are_bounded_and_anothers_session_is_none_of_ones_business(
    tmp_path: Path, checkpoint: Path
) -> None:
    async with (
        memory_swarm(tmp_path / "home", checkpoint, WHOLE) as swarm,
        by_hand(swarm.world.network(), swarm.networks[0].address) as client,
        by_hand(swarm.world.network(), swarm.networks[0].address) as stranger,
    ):
        await begun(client, swarm.model.digest)
        said = await asked(stranger, os.urandom(16))
        assert (said.windows, said.refused) == ((), "no such session here, or not of this peer")
        assert "of which 2 have been computed" in (await asked(client, os.urandom(16), tokens=33)).refused
        for _ in range(MAX_QUESTIONS - 1):
            assert (await asked(client, os.urandom(16))).windows
        assert f"{MAX_QUESTIONS} times" in (await asked(client, os.urandom(16))).refused
        assert swarm.nodes[0].server.sessions == 1  # the session itself goes on


ONE = SignedWindow(1, bytes(32), bytes(32), bytes(64))
ANSWERS: dict[str, Callable[[GetReceipts], Receipts]] = {
    "none": lambda asked: Receipts(asked.session, asked.first, ()),
    "many": lambda asked: Receipts(asked.session, asked.first, (ONE,) * MAX_WINDOWS),
    "others": lambda asked: Receipts(asked.session, asked.first + 1, (ONE,)),
    "unsigned": lambda asked: Receipts(asked.session, asked.first, (ONE,)),
    "refused": lambda asked: Receipts(asked.session, asked.first, (), "no"),
}


@pytest.mark.parametrize("how", ANSWERS)
async def test_a_hop_that_gives_nonsense_is_done_with_at_once_and_the_session_goes_on(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def reply(_: ReceiptDesk, channel: Any, message: GetReceipts, hop: Hop) -> None:
        channel.reply(ANSWERS[how](message))

    monkeypatch.setattr(ReceiptDesk, "_reply", reply)
    async with (
        memory_swarm(tmp_path / "home", checkpoint, WHOLE) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        await session.step([5, 6, 7])
        reputation, peer = session.ring.reputation, session.ring.route[0].address.peer
        before = reputation.trust(peer, trio.current_time())
        with trio.fail_after(20):
            found = await pull_receipts(session, [5, 6, 7], [], None)
        (fault,) = found.faults
        assert fault.kind == ("signature" if how == "unsigned" else "missing")
        assert reputation.trust(peer, trio.current_time()) < before
        await session.step([8])


async def test_receipts_that_nobody_asked_for_change_nothing(tmp_path: Path, checkpoint: Path) -> None:
    async with (
        memory_swarm(tmp_path / "home", checkpoint, WHOLE) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        await session.step([5, 6, 7])
        (hop,) = swarm.nodes[0].server._sessions  # pyright: ignore[reportPrivateUsage]
        for _ in range(20):
            hop.client.reply(Receipts(session.ring.session, 0, (ONE,) * MAX_WINDOWS))
        await session.step([8])
        assert (await pull_receipts(session, [5, 6, 7, 8], [], None)).faults == ()
