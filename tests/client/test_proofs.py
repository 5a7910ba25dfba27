"""Proofs of real sessions: honest hops prove any block, and who computes something else proves none."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

from shoal.client.answer import Answer
from shoal.client.audits import proofs
from shoal.client.audits.findings import Findings
from shoal.client.swarm import Swarm
from shoal.errors import Busy, NotAllowed, ShoalError
from shoal.executor import load
from shoal.executor.kernels.c_kernels import aligned
from shoal.executor.weights.llama_blocks import LayerWeights
from shoal.models.checkpoint.sizes import block_bytes
from shoal.node import node
from shoal.node.audits import prove
from shoal.node.audits.prove import ProofDesk
from shoal.routing.reputation import REFUSAL
from shoal.sharing.peer_weights import has_span
from shoal.swarm.audit_book import AuditBook
from shoal.testing.cheats import cheating
from shoal.testing.swarm import MemorySwarm, memory_swarm
from shoal.trust.proofs import draw
from shoal.trust.proofs.block_proof import BlockStatement
from shoal.types import Format, PeerId, Span
from shoal.wire.proofs import Prove, Proved

SPANS = [Span(0, 2), Span(2, 5), Span(5, 6)]
PROMPT = [5, 9, 2, 31, 8, 77, 3] * 6
COUNT = 24
"""Three windows, of which the last one is not whole."""
LAST_OF_MIDDLE = 4


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@asynccontextmanager
async def asking(
    home: Path, checkpoint: Path, *, cheat: str = "", format: Format = "int8"
) -> AsyncGenerator[tuple[MemorySwarm, Swarm]]:
    """Three nodes, of which the middle one may cheat, and a client."""
    async with memory_swarm(home, checkpoint, [], format=format) as swarm:
        for place, span in enumerate(SPANS):
            with pytest.MonkeyPatch.context() as patch:
                if cheat and place == 1:
                    patch.setattr(node, "load_runner", cheating(cheat))
                await swarm.add_node(span, format=format)
        yield swarm, await swarm.add_client()


async def proved(client: Swarm, folder: Path, block: int, window: int) -> Answer:
    """An answer of which this block and this window are drawn."""
    drawn = iter([(block + 0.5) / 6, (window + 0.5) / 3])
    client.audits.proofs.chance = lambda: next(drawn)
    answer = client.generate(str(folder), PROMPT, max_tokens=COUNT, protect="proved")
    async for _ in answer:
        pass
    return answer


def distrusted(client: Swarm, swarm: MemorySwarm) -> list[int]:
    """The places of nodes that the client distrusts."""
    reputation, now = client.rings.finder.reputation, trio.current_time()
    return [n for n, net in enumerate(swarm.networks) if reputation.distrusted(PeerId(net.peer), now)]


@pytest.mark.parametrize("format", ["int8", "w8a8"])
async def test_honest_hops_prove_any_block_in_any_window(
    home: Path, checkpoint: Path, format: Format
) -> None:
    async with asking(home, checkpoint, format=format) as (swarm, client):
        for block, window in ((0, 0), (1, 2), (2, 1), (3, 0), (4, 2), (5, 1)):
            found = (await proved(client, checkpoint, block, window)).protection
            assert (found.asked, found.level, found.faults) == ("proved", "proved", ())
            (proof,) = found.audits
            hop = next(n for n, span in enumerate(SPANS) if span.start <= block < span.end)
            assert (proof.hop, proof.block, proof.verdict) == (hop, block, "same")
            assert (proof.peer, proof.span) == (swarm.networks[hop].peer, SPANS[hop])
            assert proof.tokens == (1 if window == 2 else 32)
            assert ("as it says" in proof.what) is (window > 0)
            assert found.shown()["audits"][0]["block"] == block
            assert "linear layers only" in found.said[0]
        assert distrusted(client, swarm) == []


async def test_a_client_without_weights_fetches_those_of_the_block_that_is_proved(
    home: Path, checkpoint: Path
) -> None:
    async with asking(home, checkpoint) as (swarm, _):
        client = await swarm.add_client(home.with_name("elsewhere"))
        drawn = iter([3.5 / 6, 1.5 / 3])
        client.audits.proofs.chance = lambda: next(drawn)
        digest = swarm.model.digest
        answer = client.generate(digest, PROMPT, max_tokens=COUNT, protect="proved")
        async for _ in answer:
            pass
        assert (answer.protection.level, answer.protection.faults) == ("proved", ())
        here = client.store.find(digest)
        assert here is not None
        assert [block for block in range(6) if has_span(here, Span(block, block + 1))] == [3]
        assert client.weights.report.done > block_bytes(here, "fp32")[3]  # the client's figures tell of it


async def test_a_block_that_memory_cannot_hold_is_not_fetched(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "memory_budget", lambda *_: 0)
    async with asking(home, checkpoint) as (swarm, _):
        client = await swarm.add_client(home.with_name("elsewhere"))
        answer = client.generate(swarm.model.digest, PROMPT, max_tokens=COUNT, protect="proved")
        async for _ in answer:
            pass
        (proof,) = answer.protection.audits
        assert (proof.verdict, "which is too much" in proof.what) == ("open", True)
        here = client.store.find(swarm.model.digest)
        assert here is not None
        assert not any(has_span(here, Span(block, block + 1)) for block in range(6))


@pytest.mark.parametrize(
    ("cheat", "block", "window", "why"),
    [
        ("fine-tune", 3, 1, "not the rows that it had committed to"),
        ("noise", LAST_OF_MIDDLE, 0, "not the rows that it has signed"),
        ("context-cut", 2, 1, "not the rows that it had committed to"),
        ("skipped-block", LAST_OF_MIDDLE, 0, "not the rows that it has signed"),
    ],
)
async def test_a_cheat_proves_nothing_and_is_named(
    home: Path, checkpoint: Path, cheat: str, block: int, window: int, why: str
) -> None:
    async with asking(home, checkpoint, cheat=cheat) as (swarm, client):
        found = (await proved(client, checkpoint, block, window)).protection
        (proof,) = found.cheats
        assert (proof.hop, proof.peer, found.level) == (1, swarm.networks[1].peer, "fast")
        assert why in proof.what
        assert proof.by == ("this machine, its weights checked",)
        assert distrusted(client, swarm) == [1]
        (conviction,) = AuditBook(client.settings.paths.audits).read().convictions
        assert conviction.peer == swarm.networks[1].peer


async def test_who_has_one_other_weight_proves_no_product_of_it(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = load.read_layers

    def other(*args: Any) -> Iterator[LayerWeights]:
        for layer in honest(*args):
            down = layer.matrices["down"]
            weights = aligned(down.weights.copy())
            weights[5, 7] ^= 1
            yield LayerWeights({**layer.matrices, "down": replace(down, weights=weights)}, layer.vectors)

    async with memory_swarm(home, checkpoint, SPANS[:1], format="int8") as swarm:
        with monkeypatch.context() as patch:
            patch.setattr(load, "read_layers", other)
            await swarm.add_node(Span(2, 6), format="int8")
        client = await swarm.add_client()
        found = (await proved(client, checkpoint, 3, 1)).protection
        assert "the sums of its product down are not those of the model's weights" in found.cheats[0].what
        assert distrusted(client, swarm) == [1]


async def test_a_cheat_with_other_weights_finds_no_block_that_it_can_prove(
    home: Path, checkpoint: Path
) -> None:
    async with asking(home, checkpoint, cheat="int4") as (_, client):
        found = (await proved(client, checkpoint, 2, 0)).protection
        assert (found.level, found.audits[0].verdict) == ("fast", "open")
        assert "weights in grouped4: proofs are of int8 and w8a8" in found.audits[0].what


@pytest.mark.parametrize("format", ["int4", "bf16"])
async def test_in_other_formats_nothing_is_proved_and_the_answer_says_so(
    home: Path, checkpoint: Path, format: Format
) -> None:
    async with asking(home, checkpoint, format=format) as (swarm, client):
        found = (await proved(client, checkpoint, 0, 0)).protection
        assert (found.level, found.audits) == ("fast", ())
        assert f"by n1/{format}/" in found.faults[0]
        assert "--format int8" in found.faults[0]
        assert distrusted(client, swarm) == []


# ---- hops that show something else than a proof ----


def elsewhere(honest: Any) -> Any:
    """Proves for another session what is true."""

    def prove_block(statement: BlockStatement, *rest: Any) -> Any:
        return honest(BlockStatement(bytes(32), statement.block, statement.came, statement.went), *rest)

    return prove_block


def one_sum_changed(honest: Any) -> Any:
    """Shows one sum that is another, by little."""

    def prove_block(statement: Any, came: Any, past: Any, inputs: Any, sums: Any, weights: Any) -> Any:
        sums[3][5, 7] += 1
        return honest(statement, came, past, inputs, sums, weights)

    return prove_block


def other_rows(honest: Any) -> Any:
    """Shows a block of which all holds, but for the rows that it was given."""

    def prove_block(statement: Any, came: Any, *rest: Any) -> Any:
        return honest(statement, (came * np.float32(1.5)), *rest)

    return prove_block


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (elsewhere, "product qkv are not those"),
        (one_sum_changed, "its proof does not hold"),
        (other_rows, "not those that it had committed to"),
    ],
)
async def test_a_proof_of_something_else_is_refused(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, lie: Callable[[Any], Any], why: str
) -> None:
    monkeypatch.setattr(prove, "prove_block", lie(prove.prove_block))
    async with asking(home, checkpoint) as (swarm, client):
        found = (await proved(client, checkpoint, 3, 1)).protection
        assert found.level == "fast"
        assert why in found.cheats[0].what
        assert distrusted(client, swarm) == [1]


async def test_an_earlier_proof_shows_nothing_of_a_later_answer(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[tuple[int, int | None], bytes] = {}
    honest = ProofDesk._made

    async def again(self: ProofDesk, message: Prove, payload: bytes, hop: Any) -> bytes:
        """The answer that was right the first time: for the same rows, of the same block and window."""
        made = await honest(self, message, payload, hop)
        return kept.setdefault((message.window, message.block), made)

    monkeypatch.setattr(ProofDesk, "_made", again)
    async with asking(home, checkpoint) as (_, client):
        assert (await proved(client, checkpoint, 3, 1)).protection.level == "proved"
        found = (await proved(client, checkpoint, 3, 1)).protection
        assert found.level == "fast"
        assert "product qkv are not those" in found.cheats[0].what


async def _nothing(desk: ProofDesk, channel: Any, message: Prove, payload: bytes, hop: Any) -> None:
    del desk._asked[hop]
    channel.reply(Proved(message.session, message.window, message.block, 0, "I would rather not"))


async def _short(desk: ProofDesk, channel: Any, message: Prove, payload: bytes, hop: Any) -> None:
    del desk._asked[hop]
    await channel.send(Proved(message.session, message.window, message.block, 64), bytes(64))


async def _other(desk: ProofDesk, channel: Any, message: Prove, payload: bytes, hop: Any) -> None:
    del desk._asked[hop]
    await channel.send(Proved(message.session, message.window + 1, message.block, 64), bytes(64))


async def _silent(desk: ProofDesk, channel: Any, message: Prove, payload: bytes, hop: Any) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (_nothing, "it proves nothing: I would rather not"),
        (_short, "a proof of 64 bytes where one has"),
        (_other, "a proof of window 2"),
        (_silent, "did not reply within"),
    ],
)
async def test_a_hop_that_shows_no_proof_is_not_named_and_the_answer_is_not_proved(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, does: Any, why: str
) -> None:
    monkeypatch.setattr(ProofDesk, "_answer", does)
    monkeypatch.setattr(proofs, "COMMIT_WITHIN_S", 0.3)
    async with asking(home, checkpoint) as (_, client):
        answer = await proved(client, checkpoint, 3, 1)
        found = answer.protection
        assert (found.level, found.audits[0].verdict) == ("fast", "open")
        assert why in found.audits[0].what
        assert len(answer.token_ids) == COUNT
        assert AuditBook(client.settings.paths.audits).read().convictions == ()


@pytest.mark.parametrize(("error", "share"), [(Busy, 0.0), (NotAllowed, REFUSAL)])
async def test_who_is_busy_proves_nothing_and_loses_nothing_by_it(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: type[ShoalError], share: float
) -> None:
    async def made(*_: Any) -> bytes:
        raise error("the prover says no")

    monkeypatch.setattr(ProofDesk, "_made", made)
    held = list[float]()
    monkeypatch.setattr(Findings, "hold_against", lambda self, peer, share: held.append(share))
    async with asking(home, checkpoint) as (_, client):
        found = (await proved(client, checkpoint, 3, 1)).protection
    assert (found.level, found.audits[0].verdict) == ("fast", "open")
    assert "it proves nothing" in found.audits[0].what and "the prover says no" in found.audits[0].what
    assert sum(held) == share


async def test_more_keys_and_values_than_a_proof_may_have_are_not_shown(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove, "MAX_PAST", 32 * 32 * 4 - 1)
    async with asking(home, checkpoint) as (_, client):
        assert (await proved(client, checkpoint, 3, 0)).protection.level == "proved"
        found = (await proved(client, checkpoint, 3, 1)).protection
        assert "more keys and values than a proof may have" in found.audits[0].what


async def test_every_window_is_drawn_whose_keys_and_values_a_proof_may_have(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 32 * 32 * 4  # of a window: keys and values of two heads of 16, in a model that is 64 wide
    for most, window in ((2 * one, 2), (2 * one - 1, 1)):
        monkeypatch.setattr(draw, "MAX_PAST", most)
        monkeypatch.setattr(prove, "MAX_PAST", most)
        async with asking(home / str(most), checkpoint) as (_, client):
            found = (await proved(client, checkpoint, 3, 2)).protection
            assert (found.level, found.faults) == ("proved", ())
            assert f"at tokens {32 * window} to" in found.audits[0].what


async def test_who_asks_is_bounded_and_hears_only_of_rows_that_it_sent(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove, "QUESTIONS", 4)
    async with asking(home, checkpoint) as (_, client), client.session(str(checkpoint), tokens=64) as session:
        await session.step(PROMPT)
        rows = b"".join(await session.sent_rows(32))
        ask = Prove(session.ring.session, bytes(16), len(PROMPT), 0, len(rows))

        async def refused(message: Prove, payload: bytes) -> str:
            hop = session.ring.places.hops[0]
            reply = await hop.ask(message, 5.0, payload)
            assert isinstance(reply, Proved)
            return reply.refused

        changed = msgspec.structs.replace
        assert await refused(ask, rows) == ""
        assert "not the rows" in await refused(ask, rows[:-1] + bytes([rows[-1] ^ 1]))
        assert "no window 2" in await refused(changed(ask, window=2), rows)
        assert "has blocks 0:2" in await refused(changed(ask, block=2), rows)
        assert "asked for 4 times" in await refused(ask, rows)
