"""What a node gives away: within bounds, behind its sessions, and only of what it shares."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
import trio.testing

from shoal.config import Settings
from shoal.errors import ChannelClosed
from shoal.net.channel import Channel
from shoal.net.outbox import CONTROL_LIMIT
from shoal.net.pool import ChannelPool
from shoal.sharing.share_pace import BESIDE_STEPS, STEPPING_S, SharePace
from shoal.sharing.shared_model import SharedModel
from shoal.sharing.weight_server import (
    ANSWER_WITHIN_S,
    MAX_PEERS,
    PER_NETWORK,
    PER_PEER,
    WeightServer,
    shares_weights,
)
from shoal.testing.byhand import framed
from shoal.testing.memory import World
from shoal.wire.fetching import MAX_PIECE, Fetch, Fetched, FetchPart, NotFetched
from shoal.wire.messages import NEWEST_VERSION, Hello, Message, encode
from tests.sharing.conftest import HeldModel

MIB = 1 << 20


@dataclass
class Asker:
    """One peer's channel to a server."""

    channel: Channel
    digest: str
    incoming: trio.MemoryReceiveChannel[tuple[Message, bytes]]
    answers: list[tuple[Message, bytes]] = field(default_factory=list[tuple[Message, bytes]])
    numbers: int = 0

    def ask(self, part: FetchPart, item: int = 0, index: int = 0, digest: str = "") -> None:
        self.numbers += 1
        self.channel.send_now(Fetch(self.numbers, digest or self.digest, part, item, index))

    async def answer(self, count: int = 1) -> tuple[Message, bytes]:
        """The last of so many answers, in all."""
        with trio.fail_after(60):
            while len(self.answers) < count:
                self.answers.append(await self.incoming.receive())
        return self.answers[count - 1]


class Serving:
    """A server and whoever asks it."""

    def __init__(
        self, world: World, nursery: trio.Nursery, shared: SharedModel, server: WeightServer
    ) -> None:
        self.world, self.nursery, self.server, self.shared = world, nursery, server, shared
        self.network = world.network()

    async def asker(self, host: str = "") -> Asker:
        came, incoming = trio.open_memory_channel[tuple[Message, bytes]](100)

        async def handle(channel: Channel, message: Message, payload: bytes) -> None:
            came.send_nowait((message, payload))

        network = self.world.network()
        network.host = host
        pool = ChannelPool(network, handle, lambda channel, reason: None)
        await self.nursery.start(partial(pool.run, accept=False))
        channel = await pool.get(self.network.address, deadline_s=5)
        return Asker(channel, self.shared.model.digest, incoming)


@asynccontextmanager
async def serving(shared: SharedModel, server: WeightServer) -> AsyncGenerator[Serving]:
    async with trio.open_nursery() as nursery:
        found = Serving(World(), nursery, shared, server)
        server.share(shared)
        pool = ChannelPool(found.network, server.take, lambda channel, reason: None)
        await nursery.start(server.run)
        await nursery.start(partial(pool.run, accept=True))
        yield found
        nursery.cancel_scope.cancel()


async def test_whoever_asks_gets_the_offer_the_manifest_the_hashes_and_chunks(whole: HeldModel) -> None:
    up = whole.items("model.layers.2.up")[0]
    async with serving(whole.shared, WeightServer(SharePace(0))) as s:
        asker = await s.asker()
        for part, item, index in (("offer", 0, 0), ("manifest", 0, 0), ("hashes", up, 0), ("chunk", up, 2)):
            asker.ask(part, item, index)
        await asker.answer(4)
        offer, manifest, hashes, chunk = (payload for _, payload in asker.answers)
    assert all(bool(offer[n // 8] >> n % 8 & 1) for n in range(len(whole.manifest.items)))
    assert manifest == whole.manifest.raw
    assert whole.manifest.items[up].fits(hashes)
    entry = whole.shared.entries[up]
    assert entry is not None
    assert entry.file.read_bytes()[entry.begin : entry.begin + entry.size].endswith(chunk)


@pytest.mark.parametrize(
    ("part", "item", "index", "digest"),
    [
        ("chunk", 0, 1 << 20, ""),
        ("chunk", 1 << 16, 0, ""),
        ("hashes", 1 << 16, 0, ""),
        ("manifest", 0, 0, "sha256:" + "0" * 64),
        ("chunk", 0, 0, "../../etc/passwd"),
    ],
)
async def test_what_is_not_shared_is_refused_and_the_next_question_is_answered(
    part: FetchPart, item: int, index: int, digest: str, whole: HeldModel
) -> None:
    async with serving(whole.shared, WeightServer(SharePace(0))) as s:
        asker = await s.asker()
        asker.ask(part, item, index, digest)
        refused, _ = await asker.answer()
        assert isinstance(refused, NotFetched)
        assert refused.code == "unknown_model"
        asker.ask("manifest")
        assert isinstance((await asker.answer(2))[0], Fetched)


async def test_pieces_behind_the_end_are_empty(whole: HeldModel) -> None:
    up = whole.items("model.layers.2.up")[0]
    async with serving(whole.shared, WeightServer(SharePace(0))) as s:
        asker = await s.asker()
        asker.ask("manifest", 0, 1 << 20)
        asker.ask("hashes", up, 1 << 20)
        await asker.answer(2)
        assert [payload for _, payload in asker.answers] == [b"", b""]


async def test_one_peer_has_a_bound_and_another_is_served(whole: HeldModel) -> None:
    stepping = 1
    async with serving(whole.shared, WeightServer(SharePace(0), steps_waiting=lambda: stepping)) as s:
        greedy, other = await s.asker(), await s.asker()
        for _ in range(PER_PEER + 5):
            greedy.ask("chunk", whole.items("embed")[0])
        await greedy.answer(5)
        assert all(isinstance(m, NotFetched) and m.code == "busy" for m, _ in greedy.answers)
        other.ask("manifest")
        await trio.sleep(0.05)
        stepping = 0
        assert isinstance((await other.answer())[0], Fetched)
        await greedy.answer(PER_PEER + 5)
        assert sum(isinstance(m, Fetched) for m, _ in greedy.answers) == PER_PEER


async def test_so_many_peers_are_answered_at_a_time(whole: HeldModel) -> None:
    async with serving(whole.shared, WeightServer(SharePace(0), steps_waiting=lambda: 1)) as s:
        askers = [await s.asker() for _ in range(MAX_PEERS + 1)]
        for asker in askers:
            asker.ask("manifest")
            await trio.sleep(0.005)
        refused, _ = await askers[-1].answer()
        assert isinstance(refused, NotFetched)
        assert refused.code == "busy"
        assert refused.retry_after_s > 1


async def test_who_asks_and_does_not_read_refusals_is_hung_up_on_and_others_are_served(
    whole: HeldModel,
) -> None:
    async with serving(whole.shared, WeightServer(SharePace(0))) as s:
        pipe = await s.world.network().open_pipe(s.network.address, deadline_s=1)
        await pipe.send_all(framed(encode(Hello(NEWEST_VERSION))))
        with pytest.raises(ChannelClosed), trio.fail_after(60):
            for number in range(10 * CONTROL_LIMIT):
                ask = Fetch(number, "sha256:" + "0" * 64, "manifest", 0, 0)
                await pipe.send_all(framed(encode(ask)))
                with trio.move_on_after(5):
                    while s.server._peers:  # noqa: ASYNC110  # pyright: ignore[reportPrivateUsage]
                        await trio.sleep(0.001)
        other = await s.asker()
        other.ask("manifest")
        assert isinstance((await other.answer())[0], Fetched)


async def test_the_keys_of_one_network_do_not_take_every_place(whole: HeldModel) -> None:
    async with serving(whole.shared, WeightServer(SharePace(0), steps_waiting=lambda: 1)) as s:
        crowd = [await s.asker(f"198.41.0.{number}") for number in range(PER_NETWORK + 1)]
        for asker in crowd:
            asker.ask("manifest")
            await trio.sleep(0.005)
        assert isinstance((await crowd[-1].answer())[0], NotFetched)
        other = await s.asker("193.0.14.129")
        other.ask("manifest")
        await trio.sleep(0.05)
        assert len(s.server._peers) == PER_NETWORK + 1  # pyright: ignore[reportPrivateUsage]
        assert not other.answers


async def test_nothing_goes_while_a_step_runs_and_whoever_waits_is_told(
    whole: HeldModel, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(whole.shared, WeightServer(SharePace(0), steps_waiting=lambda: 1)) as s:
        asker = await s.asker()
        asker.ask("chunk", whole.items("embed")[0])
        began = trio.current_time()
        busy, _ = await asker.answer()
        assert trio.current_time() - began == pytest.approx(ANSWER_WITHIN_S, abs=1)
        assert isinstance(busy, NotFetched)
        assert busy.code == "busy"


def test_the_rate_is_kept() -> None:
    pace, now, gone = SharePace(10 * MIB), 0.0, 0
    while now < 10:
        wait_s = pace.wait_s(MAX_PIECE, now)
        gone += wait_s == 0
        now += wait_s
    assert gone == pytest.approx(10 * 10, abs=4)


def test_without_a_rate_only_steps_slow_it_down() -> None:
    pace = SharePace(0)
    assert all(pace.wait_s(MAX_PIECE, 5.0) == 0 for _ in range(1000))
    now, gone = 5.0, 0
    while now < 15:
        pace.note_step(now)
        wait_s = pace.wait_s(MAX_PIECE, now)
        gone += wait_s == 0
        now += min(wait_s, 0.02)
    assert gone * MAX_PIECE == pytest.approx(10 * BESIDE_STEPS, rel=0.1)
    assert all(pace.wait_s(MAX_PIECE, now + STEPPING_S) == 0 for _ in range(1000))


@pytest.mark.parametrize(
    ("share", "swarm", "gives"),
    [
        ("auto", "home", True),
        ("auto", "public", False),
        ("on", "public", True),
        ("off", "home", False),
    ],
)
def test_private_swarms_share_unless_a_setting_refuses(share: str, swarm: str, gives: bool) -> None:
    assert shares_weights(Settings(share=share, swarm=swarm)) == gives
