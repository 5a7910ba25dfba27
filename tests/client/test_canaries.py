"""Canaries in real sessions: no hop can tell them from other clients, and who spares known ones is named."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from shoal.client.answer import Answer
from shoal.client.audits.canaries import Canaries
from shoal.client.swarm import Swarm
from shoal.errors import ChannelClosed
from shoal.node import node
from shoal.node.admission import Admission
from shoal.node.hop import Hop
from shoal.swarm.audit_book import AuditBook
from shoal.swarm.taking_part.comparison import DIRECTORY_PROTOCOL
from shoal.testing.cheats import spare_clients, without_short_cuts
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.memory import MemoryNetwork
from shoal.testing.swarm import MemorySwarm, memory_swarm
from shoal.trust.audit_record import AuditRecord, CanaryCounts
from shoal.types import PeerId, Span
from shoal.wire.messages import Open, Step

SPANS = [Span(0, 2), Span(2, 4), Span(4, 6)]
PROMPT = [5, 9, 2, 31, 8, 77, 3] * 6
COUNT = 24
ROWS = len(PROMPT) + COUNT - 1
"""Of an answer, those that go through the blocks."""
LIAR = 1
"""The place of the node that the client's answers go over, wherever it serves."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers are as long as they may be."""
    return write_checkpoint(tmp_path_factory.mktemp("endless"), "llama", eos_token_id=None)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@asynccontextmanager
async def asking(
    home: Path, checkpoint: Path, spans: list[Span], **options: Any
) -> AsyncGenerator[tuple[MemorySwarm, Swarm]]:
    """Nodes, and a client that may spend half of its budget on canaries."""
    async with memory_swarm(home, checkpoint, [], format="int8") as swarm:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node, "load_runner", partial(without_short_cuts, node.load_runner))
            for span in spans:
                await swarm.add_node(span, format="int8")
        settings: dict[str, Any] = {"audit_budget": 6.0, "canaries": 0.5} | options
        yield swarm, await swarm.add_client(**settings, pin=(swarm.networks[LIAR].peer,))


async def ask(client: Swarm, folder: Path) -> Answer:
    answer = client.generate(str(folder), PROMPT, max_tokens=COUNT, protect="audited", temperature=0.8)
    async for _ in answer:
        pass
    return answer


def canaries(client: Swarm) -> Canaries:
    assert client.canaries is not None
    return client.canaries


def record(client: Swarm) -> AuditRecord:
    return AuditBook(client.settings.paths.audits).read()


async def test_a_hop_that_is_honest_to_a_known_client_and_lies_to_strangers_is_named_by_a_canary_alone(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.trust.canary.MEAN_PAUSE_S", 0.05)
    async with asking(home, checkpoint, [*SPANS, SPANS[1]]) as (swarm, client):
        liar = swarm.networks[LIAR].peer
        spare_clients(swarm.nodes[LIAR].server._admission, {client.network.peer})
        asked = 0
        with trio.fail_after(60):
            while not record(client).canaries.sent:
                asked += 1
                assert not (await ask(client, checkpoint)).protection.cheats  # it is known to audit
                await trio.sleep(0.1)
        assert asked < 20
        (found,) = record(client).convictions
        assert (found.peer, found.start, found.end, found.canary) == (liar, 2, 4, True)
        assert (
            canaries(client).counts.cheat == record(client).canaries.cheat == 1
        )  # the next may be under way
        now, reputation = trio.current_time(), client.rings.finder.reputation
        distrusted = [n.peer for n in swarm.networks if reputation.distrusted(PeerId(n.peer), now)]
        assert distrusted == [liar]
        assert liar not in [stage.peer for stage in (await ask(client, checkpoint)).route]


async def test_a_canary_asks_what_a_stranger_would_and_what_it_takes_stays_within_its_share(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, rows = list[tuple[PeerId, Open]](), dict[bytes, list[int]]()
    begin, take = Admission.begin, Hop.take

    def noted(self: Admission, channel: Any, message: Open, *rest: Any) -> Any:
        opened.append((channel.peer, message))
        return begin(self, channel, message, *rest)

    def by_hop(one: tuple[PeerId, Open]) -> int:
        return one[1].hop

    def stepped(self: Hop, step: Step, payload: bytes) -> None:
        rows.setdefault(self.session, []).append(step.tokens)
        take(self, step, payload)

    monkeypatch.setattr(Admission, "begin", noted)
    monkeypatch.setattr(Hop, "take", stepped)
    async with asking(home, checkpoint, SPANS) as (swarm, client):
        assert await canaries(client).send_due() is None  # there is nothing that it could be like
        await ask(client, checkpoint)
        real = sorted(opened, key=by_hop)
        opened.clear()
        found = await canaries(client).send_due()
        assert found is not None and found.level == "audited"
        assert {audit.peer for audit in found.audits} == {network.peer for network in swarm.networks}
        assert {audit.verdict for audit in found.audits} == {"same"}
        opened.sort(key=by_hop)
        names = {peer for peer, _ in opened}
        assert len(names) == 1 and client.network.peer not in names
        assert names.isdisjoint(swarm.world.peers)  # it has left

        def plain(message: Open) -> Open:
            onward = message.next and msgspec.structs.replace(message.next, peer="")
            return msgspec.structs.replace(message, session=bytes(16), next=onward)

        assert [plain(message) for _, message in opened] == [plain(message) for _, message in real]
        one, other = rows[real[0][1].session], rows[opened[0][1].session]
        assert one[0] == other[0] == len(PROMPT)
        account = record(client).account
        assert account.canaries == 2 * ROWS * 6  # the answer, and each hop once more
        assert record(client).canaries == CanaryCounts(same=1)
        assert record(client).convictions == ()
        assert await canaries(client).send_due() is None  # not before others have earned it


async def test_a_canary_that_gets_no_answer_blames_nobody_and_gives_back_what_its_audits_would_have_taken(
    home: Path, checkpoint: Path
) -> None:
    async with asking(home, checkpoint, SPANS, resume_s=0.2, open_timeout_s=0.5) as (swarm, client):
        await ask(client, checkpoint)
        swarm.kill(2)
        assert await canaries(client).send_due() is None
        assert record(client).canaries == CanaryCounts(failed=1)
        assert record(client).account.canaries == record(client).account.earned  # as its answer took
        assert record(client).convictions == ()


async def test_a_canary_knows_the_hops_that_it_is_for_though_the_swarm_tells_it_of_nobody(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(home, checkpoint, SPANS) as (swarm, client):
        await ask(client, checkpoint)
        request = MemoryNetwork.request

        async def silence(
            self: MemoryNetwork, peer: PeerId, protocol: str, *rest: Any, **within: Any
        ) -> bytes:
            if protocol == DIRECTORY_PROTOCOL:
                raise ChannelClosed("one of a large swarm knows others")
            return await request(self, peer, protocol, *rest, **within)

        async def unheard(*_: object) -> None:
            await trio.lowlevel.checkpoint()

        monkeypatch.setattr(MemoryNetwork, "request", silence)
        monkeypatch.setattr(MemoryNetwork, "publish", unheard)
        found = await canaries(client).send_due()
        assert found is not None
        assert {audit.peer for audit in found.audits} == {network.peer for network in swarm.networks}


async def test_a_canary_that_is_cut_off_is_counted_and_gives_back_what_it_has_not_used(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(home, checkpoint, SPANS) as (_, client):
        await ask(client, checkpoint)
        begin, ending = Admission.begin, trio.CancelScope()

        def opened(self: Admission, *rest: Any) -> Any:
            ending.cancel()
            return begin(self, *rest)

        monkeypatch.setattr(Admission, "begin", opened)
        with ending:
            await canaries(client).send_due()
        assert ending.cancelled_caught
        assert canaries(client).counts == record(client).canaries == CanaryCounts(failed=1)
        assert record(client).account.canaries == record(client).account.earned  # as its answer took


async def test_without_the_option_there_are_none_and_audits_have_all_of_the_budget(
    home: Path, checkpoint: Path
) -> None:
    async with asking(home, checkpoint, SPANS, canaries=0.0) as (_, client):
        assert client.canaries is None
        await ask(client, checkpoint)
        assert record(client).account.canaries == 0
