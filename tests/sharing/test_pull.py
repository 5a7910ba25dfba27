"""Pulls in memory, over real channels: a peer that lies, dies or says nothing costs time, and no more."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from shoal.errors import BadWeights, NoCoverage, OutOfResources
from shoal.models.checkpoint.manifest import CHUNK, digest_of, read_manifest, write_manifest
from shoal.net.channel import Channel
from shoal.sharing import pull as pull_module
from shoal.sharing.pulled_folder import PulledFolder
from shoal.sharing.shared_model import SharedModel
from shoal.testing.memory import World
from shoal.wire.fetching import Fetch, Fetched, NotFetched
from tests.sharing.conftest import HeldModel
from tests.sharing.peers import Answer, Puller, Sharer, add_sharer, puller

BLOCK = "model.layers.1."


@dataclass
class Pulling:
    """Sharers and one who pulls from them, into ``folder``."""

    world: World
    nursery: trio.Nursery
    sharers: list[Sharer]
    puller: Puller
    folder: PulledFolder


@asynccontextmanager
async def pulling(tmp_path: Path, whole: HeldModel, shared: Sequence[SharedModel]) -> AsyncGenerator[Pulling]:
    world = World()
    async with trio.open_nursery() as nursery:
        sharers = [await add_sharer(nursery, world, model) for model in shared]
        async with puller(world, whole.shared, sharers) as found:
            yield Pulling(world, nursery, sharers, found, PulledFolder(tmp_path, whole.manifest))
        nursery.cancel_scope.cancel()


@dataclass(frozen=True)
class Corrupting(SharedModel):
    """Gives chunks of which one bit is wrong."""

    def chunk(self, item: int, index: int) -> bytes:
        right = super().chunk(item, index)
        return right[:-1] + bytes([right[-1] ^ 1])


def corrupting(shared: SharedModel) -> SharedModel:
    return Corrupting(shared.model, shared.manifest, shared.hashes, shared.entries)


async def test_a_manifest_is_the_one_of_its_digest(tmp_path: Path, whole: HeldModel) -> None:
    async with pulling(tmp_path, whole, [whole.shared]) as p:
        assert await p.puller.pull.manifest(whole.model.digest) == whole.manifest


async def test_a_block_comes_from_three_peers_and_nothing_else_does(tmp_path: Path, whole: HeldModel) -> None:
    wanted = whole.items(BLOCK)
    size = sum(whole.manifest.items[number].size for number in wanted)
    async with pulling(tmp_path, whole, [whole.shared] * 3) as p:
        asked, all_asked = set[Sharer](), trio.Event()

        def once_all_are_asked(sharer: Sharer) -> Answer:
            async def give(channel: Channel, message: Fetch) -> None:
                if message.part == "chunk":  # else two give all before the third one is asked
                    await all_asked.wait()
                await sharer.server.take(channel, message, b"")

            def answer(channel: Channel, message: Fetch) -> None:
                if message.part == "chunk":
                    asked.add(sharer)
                    if len(asked) == 3:
                        all_asked.set()
                p.nursery.start_soon(give, channel, message)

            return answer

        for sharer in p.sharers:
            sharer.answer = once_all_are_asked(sharer)
        with trio.fail_after(20):
            await p.puller.pull.items(p.folder, wanted)
        report = p.puller.pull.report
        assert p.folder.missing(wanted) == {}
        assert report.done == report.total == size == sum(report.by_peer.values())
        assert len(report.by_peer) == 3
        assert p.puller.fetcher.received < 1.02 * size
        assert not p.puller.blamed


async def test_who_sends_a_wrong_chunk_is_dropped_and_remembered(tmp_path: Path, whole: HeldModel) -> None:
    wanted = [n for n, item in enumerate(whole.manifest.items) if item.is_tensor]
    async with pulling(tmp_path, whole, [corrupting(whole.shared), whole.shared, whole.shared]) as p:
        await p.puller.pull.items(p.folder, wanted)
        assert p.folder.missing(wanted) == {}
        liar = p.sharers[0].network.peer
        assert p.puller.blamed == [liar]
        assert liar not in p.puller.pull.report.by_peer


async def test_who_is_killed_half_way_is_done_without(tmp_path: Path, whole: HeldModel) -> None:
    wanted = [n for n, item in enumerate(whole.manifest.items) if item.is_tensor]
    async with pulling(tmp_path, whole, [whole.shared] * 2) as p:
        dying = p.sharers[0]

        def die(channel: Channel, message: Fetch) -> None:
            chunks.append(message)
            if len(chunks) == 4 and dying.network.peer in p.world.peers:
                p.world.kill(dying.network.peer)
            p.nursery.start_soon(dying.server.take, channel, message, b"")

        chunks: list[Fetch] = []
        dying.answer = die
        await p.puller.pull.items(p.folder, wanted)
        assert dying.network.peer not in p.world.peers
        assert p.folder.missing(wanted) == {}
        assert not p.puller.blamed


async def test_with_a_single_liar_there_is_nobody_left(
    tmp_path: Path, whole: HeldModel, patient_clock: trio.testing.MockClock
) -> None:
    async with pulling(tmp_path, whole, [corrupting(whole.shared)]) as p:
        with pytest.raises(NoCoverage, match="nobody who can be reached has"):
            await p.puller.pull.items(p.folder, whole.items(BLOCK))
        assert p.folder.missing(whole.items(BLOCK))


def silence(channel: Channel, message: Fetch) -> None:
    """Says nothing."""


def refusal(channel: Channel, message: Fetch) -> None:
    channel.reply(NotFetched(message.number, "unknown_model", "what is that?"))


def endless(channel: Channel, message: Fetch) -> None:
    """Always another full piece, so that a manifest would never end."""
    channel.send_now(Fetched(message.number, CHUNK), bytes(CHUNK))


def empty(channel: Channel, message: Fetch) -> None:
    channel.send_now(Fetched(message.number, 0))


def flood(channel: Channel, message: Fetch) -> None:
    for number in range(20):
        channel.send_now(Fetched(message.number + 1000 + number, CHUNK), bytes(CHUNK))


def twice(channel: Channel, message: Fetch) -> None:
    empty(channel, message)
    empty(channel, message)


@pytest.mark.parametrize("answer", [silence, refusal, endless, empty, flood, twice])
async def test_whoever_answers_otherwise_is_done_without(
    answer: Callable[[Channel, Fetch], None],
    tmp_path: Path,
    whole: HeldModel,
    patient_clock: trio.testing.MockClock,
) -> None:
    async with pulling(tmp_path, whole, [whole.shared] * 2) as p:
        p.sharers[0].answer = answer
        with trio.fail_after(120):
            assert await p.puller.pull.manifest(whole.model.digest) == whole.manifest
            await p.puller.pull.items(p.folder, whole.items(BLOCK))
        assert p.folder.missing(whole.items(BLOCK)) == {}


async def test_a_peer_that_sends_no_manifest_holds_up_nobody_elses(
    tmp_path: Path, whole: HeldModel, patient_clock: trio.testing.MockClock
) -> None:
    async with pulling(tmp_path, whole, [whole.shared] * 2) as p:
        p.sharers[0].answer = silence
        with trio.fail_after(25):
            assert await p.puller.pull.manifest(whole.model.digest) == whole.manifest


@pytest.mark.parametrize("answer", [silence, refusal])
async def test_a_pull_from_nobody_has_an_end(
    answer: Callable[[Channel, Fetch], None],
    tmp_path: Path,
    whole: HeldModel,
    patient_clock: trio.testing.MockClock,
) -> None:
    async with pulling(tmp_path, whole, [whole.shared]) as p:
        p.sharers[0].answer = answer
        with trio.fail_after(300), pytest.raises(NoCoverage):
            await p.puller.pull.manifest(whole.model.digest)
        with trio.fail_after(300), pytest.raises(NoCoverage):
            await p.puller.pull.items(p.folder, whole.items(BLOCK))


async def test_who_offers_all_and_gives_nothing_does_not_hold_a_pull_up_for_ever(
    tmp_path: Path, whole: HeldModel, patient_clock: trio.testing.MockClock
) -> None:
    def tease(channel: Channel, message: Fetch) -> None:
        if message.part == "offer":
            offer = whole.shared.offer()
            channel.send_now(Fetched(message.number, len(offer)), offer)
        else:
            channel.reply(NotFetched(message.number, "busy", "later", 1.0))

    async with pulling(tmp_path, whole, [whole.shared]) as p:
        p.sharers[0].answer = tease
        with trio.fail_after(300), pytest.raises(NoCoverage):
            await p.puller.pull.items(p.folder, whole.items(BLOCK))


@pytest.mark.parametrize("busy", [True, False], ids=["who is busy for a day", "who says nothing"])
async def test_as_many_as_are_asked_who_offer_all_and_give_nothing_make_room_for_one_who_gives(
    busy: bool, tmp_path: Path, whole: HeldModel, patient_clock: trio.testing.MockClock
) -> None:
    def tease(channel: Channel, message: Fetch) -> None:
        if message.part == "offer":
            offer = whole.shared.offer()
            channel.send_now(Fetched(message.number, len(offer)), offer)
        elif busy:
            channel.reply(NotFetched(message.number, "busy", "later", 86400.0))

    async with pulling(tmp_path, whole, [whole.shared] * (pull_module.PEERS + 1)) as p:
        for sharer in p.sharers[:-1]:
            sharer.answer = tease
        with trio.fail_after(60):
            await p.puller.pull.items(p.folder, whole.items("model.layers"))
        assert p.folder.missing(whole.items("model.layers")) == {}


async def test_as_many_as_are_asked_who_send_no_manifest_make_room_for_one_who_does(
    tmp_path: Path, whole: HeldModel, patient_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "PIECE_WITHIN_S", 100.0)
    async with pulling(tmp_path, whole, [whole.shared] * (pull_module.PEERS + 1)) as p:
        for sharer in p.sharers[:-1]:
            sharer.answer = silence
        with trio.fail_after(60):
            assert await p.puller.pull.manifest(whole.model.digest) == whole.manifest


async def test_endless_manifests_come_from_so_many_at_a_time(
    tmp_path: Path, whole: HeldModel, patient_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending: set[int] = set()

    def creeping(channel: Channel, message: Fetch) -> None:
        if message.index:
            sending.add(id(channel))
        else:
            endless(channel, message)

    async with pulling(tmp_path, whole, [whole.shared] * pull_module.PEERS) as p:
        for sharer in p.sharers[:-1]:
            sharer.answer = creeping
        p.sharers[-1].answer = silence
        with trio.move_on_after(pull_module.PIECE_WITHIN_S / 2):
            await p.puller.pull.manifest(whole.model.digest)
        assert len(sending) == pull_module.LONG_MANIFESTS


async def test_a_pull_goes_on_with_what_had_come(tmp_path: Path, whole: HeldModel) -> None:
    """Cancelled, as a process is killed: nothing of ours runs after it."""
    wanted = [n for n, item in enumerate(whole.manifest.items) if item.is_tensor]
    total = sum(whole.manifest.items[number].size for number in wanted)
    async with pulling(tmp_path, whole, [whole.shared]) as p, trio.open_nursery() as nursery:
        nursery.start_soon(p.puller.pull.items, p.folder, wanted)
        while p.puller.pull.report.done < total // 3:  # noqa: ASYNC110
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    had = p.puller.pull.report.done
    async with pulling(tmp_path, whole, [whole.shared]) as p:
        await p.puller.pull.items(p.folder, wanted)
        assert p.puller.pull.report.done <= total - had
        assert p.folder.missing(wanted) == {}


async def test_a_full_disk_is_told_and_nothing_is_lost(
    tmp_path: Path, whole: HeldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, written = whole.items(BLOCK), 0
    put = PulledFolder.put_chunk

    def full(self: PulledFolder, number: int, index: int, data: bytes) -> bool:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))
        return put(self, number, index, data)

    async with pulling(tmp_path, whole, [whole.shared]) as p:
        with monkeypatch.context() as patched:
            patched.setattr(PulledFolder, "put_chunk", full)
            with pytest.raises(OutOfResources, match="is full"):
                await p.puller.pull.items(p.folder, wanted)
    async with pulling(tmp_path, whole, [whole.shared]) as p:
        await p.puller.pull.items(p.folder, wanted)
        assert p.puller.pull.report.done < sum(whole.manifest.items[number].size for number in wanted)
        assert p.folder.missing(wanted) == {}


async def test_a_disk_that_is_too_small_is_told_before_anything_comes(
    tmp_path: Path, whole: HeldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_free(folder: Path, what: str, needed: int) -> None:
        raise OutOfResources(f"{what} needs {needed}")

    monkeypatch.setattr(pull_module, "check_free", nothing_free)
    async with pulling(tmp_path, whole, [whole.shared]) as p:
        with pytest.raises(OutOfResources):
            await p.puller.pull.items(p.folder, whole.items(BLOCK))
        assert not p.sharers[0].asked


async def test_a_manifest_of_that_digest_that_lies_is_refused(
    tmp_path: Path, whole: HeldModel, patient_clock: trio.testing.MockClock
) -> None:
    lying = write_manifest({}, whole.manifest.items).raw.replace(b'"version":2', b'"version":9')
    with pytest.raises(BadWeights):
        read_manifest(lying)

    def lie(channel: Channel, message: Fetch) -> None:
        channel.send_now(Fetched(message.number, len(lying)), lying)

    digest = digest_of(lying)
    async with pulling(tmp_path, whole, [whole.shared]) as p:
        p.sharers[0].answer = lie
        with pytest.raises(BadWeights, match="version"):
            await p.puller.pull.manifest(digest)
        assert not p.puller.blamed, "whoever asked for that digest got what it names"
