"""The same over libp2p: a peer that dies is gone long before its last word would have expired."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import trio

from shoal.net.host import NetworkSettings, open_network
from shoal.net.identity import Identity
from shoal.swarm.announcement import Served
from shoal.swarm.member import Member
from shoal.swarm.taking_part.speaker import TOPIC
from shoal.swarm.views.rules import ViewRules

EXPIRY_S = 12.0


def served() -> Served:
    return Served("tiny", "sha256:" + "a" * 64, 30, 576, 2048, 49152, 0, 10, "fp32", 4096, 4096, 0, 2.5)


@asynccontextmanager
async def member(*bootstrap: str, announce_s: float = 4.0, expiry_s: float = EXPIRY_S, **options):
    """A member of the public swarm on this machine, that serves something."""
    settings = NetworkSettings(Identity.ephemeral(), None, host="127.0.0.1")
    async with open_network(settings) as network, trio.open_nursery() as nursery:
        found = Member(network, announce_s=announce_s, expiry_s=expiry_s, bootstrap=bootstrap, **options)
        await nursery.start(found.run)
        found.served = served
        await found.announce()
        yield found
        nursery.cancel_scope.cancel()


async def until(reached, within_s: float) -> float:
    began = trio.current_time()
    with trio.fail_after(within_s):
        while not reached():  # noqa: ASYNC110  what is looked at has no event
            await trio.sleep(0.05)
    return trio.current_time() - began


async def test_a_peer_that_dies_is_doubted_by_its_neighbours_and_gone_before_its_word_expires():
    expiry_s = 24.0  # long beside what suspecting takes, also on a machine that does much else
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(member(expiry_s=expiry_s))
        address = f"{first.network.address.libp2p[0]}/p2p/{first.network.peer}"
        second = await stack.enter_async_context(member(address, expiry_s=expiry_s))
        async with member(address, expiry_s=expiry_s) as victim:
            peer = victim.network.peer
            await until(
                lambda: peer in {a.peer for a in first.alive()} & {a.peer for a in second.alive()}, 30
            )
            await trio.sleep(2)
            await victim.announce()  # its newest word would hold for a whole expiry from now
            await trio.sleep(0.5)
        gone = await until(lambda: peer not in {a.peer for m in (first, second) for a in m.alive()}, expiry_s)
        assert gone < 0.8 * expiry_s


async def test_a_living_peer_refutes_a_suspicion():
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(member())
        address = f"{first.network.address.libp2p[0]}/p2p/{first.network.peer}"
        second = await stack.enter_async_context(member(address))
        peer = second.network.peer
        await until(lambda: first.directory.get(peer) is not None, 30)
        await trio.sleep(0.15 * EXPIRY_S)
        suspected = first.directory.sequence(peer)
        assert await first.suspect(peer)
        await until(lambda: first.directory.sequence(peer) > suspected, 0.8 * EXPIRY_S)
        await trio.sleep(0.5 * EXPIRY_S)
        assert peer in {a.peer for a in first.alive()}


async def test_in_a_large_swarm_words_come_on_the_topic_of_their_model():
    rules = ViewRules(partial_from=2, whole_below=1)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(member(announce_s=1.0, views=rules))
        address = f"{first.network.address.libp2p[0]}/p2p/{first.network.peer}"
        second = await stack.enter_async_context(member(address, announce_s=1.0, views=rules))
        both = (first, second)
        # Once both have said so, neither speaks on the swarm's topic as often as before.
        await until(lambda: all(m.size.partial and not m.size.overlapping for m in both), 30)
        said, published = first.network.publish, list[str]()

        async def publish(topic: str, data: bytes) -> None:
            published.append(topic)
            await said(topic, data)

        async def nothing(*_: object) -> None: ...

        first.network.publish = publish
        second._comparison.pull = nothing  # it hears by gossip alone
        for _ in range(4):
            await first.announce()
            newest = first.directory.sequence(first.network.peer)
            await until(lambda newest=newest: second.directory.sequence(first.network.peer) >= newest, 5)
            await trio.sleep(0.2)  # who speaks too often is not heard
        assert published.count(TOPIC) < len(published) / 2
