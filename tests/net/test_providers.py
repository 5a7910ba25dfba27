"""Provider records when others would hide or bury the honest ones (docs/hostile.md 16)."""

from __future__ import annotations

import hashlib

import pytest
import trio
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.provider_store import ProviderRecord, ProviderStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from shoal.net.host import Libp2pNetwork
from shoal.net.identity import Identity
from shoal.net.libp2p import providers as providers_module
from shoal.net.libp2p.providers import ADDRESSES_LIMIT, PROVIDERS_LIMIT, multihash
from tests.net.conftest import bootstrap, networks, opened

KEY = hashlib.sha256(b"a model").digest()
ADDRESS = Multiaddr("/ip4/8.8.8.8/tcp/1")


def somebody(addresses: int = 1) -> PeerInfo:
    return PeerInfo(ID.from_base58(Identity.ephemeral().peer), [ADDRESS] * addresses)


def records(network: Libp2pNetwork) -> ProviderStore:
    return network._providers.provider_store


async def test_twenty_identities_do_not_hide_a_provider_for_two_days():
    async with opened() as network:
        store, honest = records(network), somebody()
        for _ in range(BUCKET_SIZE):
            store.add_provider(multihash(KEY), somebody(100))
        store.add_provider(multihash(KEY), honest)
        kept = store.get_providers(multihash(KEY))
        assert len(kept) == BUCKET_SIZE
        assert honest.peer_id in [p.peer_id for p in kept]
        assert max(len(p.addrs) for p in kept) <= ADDRESSES_LIMIT


async def test_who_says_it_again_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(providers_module, "KEYS_LIMIT", 10)
    async with opened() as network:
        store, honest = records(network), somebody()
        for number in range(100):
            store.add_provider(multihash(KEY), honest)
            store.add_provider(multihash(KEY), somebody())
            store.add_provider(multihash(hashlib.sha256(bytes([number])).digest()), somebody())
            assert len(store.providers) <= 10
            assert len(store.providers[multihash(KEY)]) <= BUCKET_SIZE
        assert honest.peer_id in [p.peer_id for p in store.get_providers(multihash(KEY))]


async def test_a_liar_does_not_bury_the_provider_that_others_name():
    async with networks(None, None, None, None) as (honest, witness, liar, asker):
        for one, other in ((honest, witness), (honest, liar), (asker, witness), (asker, liar)):
            await one.connect(bootstrap(other), deadline_s=5)
        await trio.sleep(0.5)
        await honest.provide(KEY)
        await trio.sleep(0.2)
        others = [somebody() for _ in range(1000)]
        records(liar).providers[multihash(KEY)] = {str(p.peer_id): ProviderRecord(p) for p in others}
        found = await asker.find_providers(KEY, deadline_s=5)
        assert found[0].peer == honest.peer
        assert 1 < len(found) <= min(PROVIDERS_LIMIT, 1 + BUCKET_SIZE)
