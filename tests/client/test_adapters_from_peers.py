"""Adapters that travel: a node without the folder has it from peers that serve it, checked, and keeps it."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace

import pytest
import trio

from shoal.errors import BadWeights, DigestMismatch, NoCoverage, OutOfResources, UnknownModel, UsageError
from shoal.models.adapters.kept import KeptAdapters
from shoal.models.adapters.read import read_adapter
from shoal.models.checkpoint.manifest import CHUNK
from shoal.sharing import peer_fetcher, pulled_folder
from shoal.sharing.peer_adapters import PeerAdapters
from shoal.sharing.shared_model import SharedModel
from shoal.sharing.wrong_peers import WrongPeers
from shoal.testing.adapters import write_adapter
from shoal.testing.swarm import memory_settings, memory_swarm
from shoal.types import Span

from .conftest import PROMPT

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL = Span(0, 6)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("adapters")
    pirate = write_adapter(folder / "pirate", checkpoint, LAYERS, seed=1, rank=64)
    assert (pirate / "adapter_model.safetensors").stat().st_size > CHUNK, "of several chunks"
    return [pirate, write_adapter(folder / "poet", checkpoint, LAYERS, seed=2)]


async def tokens_of(client, name):
    answer = client.generate(name, PROMPT, max_tokens=8, stop=())
    return [token async for delta in answer for token in delta.token_ids]


def taking(swarm, home, /, **options):
    """What a machine with nothing but the model fetches adapters with."""
    return PeerAdapters(swarm.client.member, memory_settings(home, **options))


async def test_a_node_without_the_folder_serves_what_peers_give_it_and_keeps_it(
    tmp_path, checkpoint, adapters
):
    name, other = f"{checkpoint}:pirate", tmp_path / "other"
    async with memory_swarm(tmp_path / "home", checkpoint, [], adapter=[]) as swarm:
        for _ in range(2):
            await swarm.add_node(ALL, adapter=[str(adapters[0])])
        expected = await tokens_of(swarm.client, name)
        digest = swarm.nodes[0].adapters[0].digest
        node = await swarm.add_node(ALL, home=other, adapter=["pirate"])
        assert [(a.name, a.digest) for a in node.adapters] == [("pirate", digest)]
        for given in (0, 1):
            swarm.kill(given)
        assert (
            await tokens_of(swarm.client, name) == expected != await tokens_of(swarm.client, str(checkpoint))
        )
        # It gives the adapter on, though those that it came from are gone.
        third = await swarm.add_node(ALL, home=tmp_path / "third", adapter=[f"sailor={digest[7:19]}"])
        assert [(a.name, a.digest) for a in third.adapters] == [("sailor", digest)]
    (kept,) = KeptAdapters(other / "adapters").list()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (kept.folder / file).read_bytes() == (adapters[0] / file).read_bytes()
    # Alone, and so without a network.
    async with memory_swarm(other, checkpoint, [ALL], adapter=["pirate"]) as swarm:
        assert await tokens_of(swarm.client, name) == expected


async def test_a_full_disk_is_told_and_what_had_come_does_not_come_again(
    tmp_path, checkpoint, adapters, monkeypatch
):
    put, came = pulled_folder.PulledFolder.put_chunk, []

    def put_two(self, number, index, data):
        if len(came) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        came.append(len(data))
        return put(self, number, index, data)

    async with memory_swarm(tmp_path / "home", checkpoint, [ALL], adapter=[str(adapters[0])]) as swarm:
        shape = swarm.model.shape
        with monkeypatch.context() as patch:
            patch.setattr(pulled_folder.PulledFolder, "put_chunk", put_two)
            with pytest.raises(OutOfResources, match="is full: the adapter pirate needs"):
                await taking(swarm, tmp_path / "new").get("pirate", "", shape)
        assert KeptAdapters(tmp_path / "new/adapters").list() == []
        again = taking(swarm, tmp_path / "new")
        kept = await again.get("pirate", "", shape)
        assert kept.digest == swarm.nodes[0].adapters[0].digest
        assert again.report.done == kept.size - sum(came)


async def test_pieces_come_from_several_peers_at_once(
    tmp_path, checkpoint, adapters, monkeypatch, autojump_clock
):
    fetch = peer_fetcher.PeerFetcher.fetch

    async def slowly(self, address, part, *args, **options):
        if part == "chunk":
            await trio.sleep(1)
        return await fetch(self, address, part, *args, **options)

    monkeypatch.setattr(peer_fetcher.PeerFetcher, "fetch", slowly)
    async with memory_swarm(tmp_path / "home", checkpoint, [ALL, ALL], adapter=[str(adapters[0])]) as swarm:
        taker = taking(swarm, tmp_path / "new")
        await taker.get("pirate", "", swarm.model.shape)
    assert set(taker.report.by_peer) == {network.peer for network in swarm.networks}


async def test_who_sends_another_adapter_is_left_out_and_another_is_asked(
    tmp_path, checkpoint, adapters, monkeypatch, autojump_clock
):
    # A liar announces the pirate, and gives the poet's files by a manifest that says they are the pirate's.
    pirate = read_adapter(adapters[0])
    false = SharedModel.of_adapter(replace(read_adapter(adapters[1]), digest=pirate.digest))
    async with memory_swarm(tmp_path / "home", checkpoint, [ALL], adapter=[str(adapters[0])]) as swarm:
        with monkeypatch.context() as patch:
            patch.setattr("shoal.node.node.shared_adapters", lambda _: [false])
            liar = await swarm.add_node(ALL, adapter=[str(adapters[0])])
        honest, liar = swarm.networks[0].peer, liar.member.network.peer
        fetch = peer_fetcher.PeerFetcher.fetch

        async def liar_first(self, address, part, *args, **options):
            if part == "manifest" and address.peer == honest:
                await trio.sleep(5)
            return await fetch(self, address, part, *args, **options)

        monkeypatch.setattr(peer_fetcher.PeerFetcher, "fetch", liar_first)
        taker = taking(swarm, tmp_path / "new")
        kept = await taker.get("pirate", "", swarm.model.shape)
        assert read_adapter(kept.folder, "pirate").digest == pirate.digest
        assert taker.report.wrong == {liar}
        assert WrongPeers(tmp_path / "new/adapters").peers() == {liar}, "nor is it asked by the next pull"
        assert len(list((tmp_path / "new/adapters").glob("[!.]*"))) == 1, "nothing is left of the other"


async def test_a_wrong_chunk_costs_its_sender_its_place(
    tmp_path, checkpoint, adapters, monkeypatch, autojump_clock
):
    async with memory_swarm(tmp_path / "home", checkpoint, [ALL, ALL], adapter=[str(adapters[0])]) as swarm:
        bad = swarm.networks[1].peer
        fetch, sent_wrong = peer_fetcher.PeerFetcher.fetch, trio.Event()

        async def corrupt(self, address, part, *args, **options):
            if part == "chunk" and address.peer != bad:
                await sent_wrong.wait()  # or the honest one gives them all before the other was asked
            data = await fetch(self, address, part, *args, **options)
            if part != "chunk" or address.peer != bad:
                return data
            sent_wrong.set()
            return bytes([data[0] ^ 1]) + data[1:]

        monkeypatch.setattr(peer_fetcher.PeerFetcher, "fetch", corrupt)
        taker = taking(swarm, tmp_path / "new")
        kept = await taker.get("pirate", "", swarm.model.shape)
        assert read_adapter(kept.folder, "pirate").digest == swarm.nodes[0].adapters[0].digest
        assert set(taker.report.by_peer) == {swarm.networks[0].peer}
        assert taker.report.wrong == {bad}


async def test_names_that_nobody_serves_and_adapters_of_other_models_are_refused(
    tmp_path, checkpoint, adapters, autojump_clock
):
    async with memory_swarm(tmp_path / "home", checkpoint, [ALL], adapter=[str(adapters[0])]) as swarm:
        shape = swarm.model.shape
        taker = taking(swarm, tmp_path / "new")
        with pytest.raises(UnknownModel, match="of that name: there is pirate") as unknown:
            await taker.folders(["parrot"], shape)
        assert unknown.value.next_command.endswith("--adapter parrot=PATH")
        other = replace(shape, name="other", digest="sha256:" + "7" * 64)
        for key in ("pirate", swarm.nodes[0].adapters[0].digest):
            with pytest.raises(DigestMismatch, match="and was not made for other"):
                await taker.folders([key], other)
        public = taking(swarm, tmp_path / "public", swarm="public", public=True)
        for key in ("pirate", swarm.nodes[0].adapters[0].digest[7:30]):
            with pytest.raises(UnknownModel, match="a name is not enough"):
                await public.folders([key], shape)
        await public.folders([swarm.nodes[0].adapters[0].digest], shape)
        with pytest.raises(UsageError, match="cannot be called deadbeef"):
            await taker.folders(["deadbeef=pirate"], shape)
        assert await taker.folders([str(adapters[1]), "x=no/such"], shape) == [str(adapters[1]), "x=no/such"]


async def test_of_two_adapters_of_one_name_the_digest_chooses(tmp_path, checkpoint, adapters, autojump_clock):
    async with memory_swarm(tmp_path / "home", checkpoint, [], adapter=[]) as swarm:
        for path in adapters:
            await swarm.add_node(ALL, adapter=[f"mine={path}"])
        taker, digests = taking(swarm, tmp_path / "new"), [node.adapters[0].digest for node in swarm.nodes]
        with pytest.raises(UsageError, match="with 2 adapters called mine") as several:
            await taker.folders(["mine"], swarm.model.shape)
        assert all(digest[7:19] in several.value.message for digest in digests)
        said = several.value.check.rpartition("--adapter ")[2]
        (found,) = await taker.folders([said], swarm.model.shape)
        name, _, folder = found.partition("=")
        assert (name, read_adapter(folder, name).digest) == ("mine", min(digests))
        await taker.get(max(digests), "mine", swarm.model.shape)
        with pytest.raises(UsageError, match="here are 2 adapters called mine"):
            await taker.folders(["mine"], swarm.model.shape)


async def test_nodes_that_do_not_share_give_no_adapter(tmp_path, checkpoint, adapters, autojump_clock):
    options = {"adapter": [str(adapters[0])], "share": "off"}
    async with memory_swarm(tmp_path / "home", checkpoint, [ALL], **options) as swarm:
        with pytest.raises(NoCoverage, match="the adapter pirate cannot be fetched") as nobody:
            await taking(swarm, tmp_path / "new").get("pirate", "", swarm.model.shape)
        assert "its setting share is not off" in nobody.value.check


def test_a_folder_that_has_changed_since_is_not_given(tmp_path, adapters):
    folder = shutil.copytree(adapters[0], tmp_path / "pirate")
    shared = SharedModel.of_adapter(read_adapter(folder))
    shared.chunk(0, 0)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 63}))
    with pytest.raises(BadWeights, match="has changed"):
        shared.chunk(0, 0)
