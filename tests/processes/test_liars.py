"""Real nodes and clients beside members that lie: the attacks that once took every client's traffic."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from shoal import config
from shoal.client.connect import open_swarm
from shoal.net.identity import Identity
from shoal.swarm.join import join_swarm
from shoal.testing import liar as lies
from shoal.testing.liar import lying

pytestmark = [pytest.mark.swarm, pytest.mark.alone]
PROMPT = list(range(5, 30))
TOKENS = 8
FIRST_S = 20.0
"""For an answer with a liar; on two cores it takes 1 s. Liars and client share this process: with
others beside it they are too slow to be told from peers that are gone."""
REFUSERS = [(lies.refuses, {"start": 0, "end": 6})] * 5
KINDS = {
    "answers in a more exact format": [(lies.passes_on(), {"start": 0, "end": 6, "format": "fp32"})],
    "refuses in a more exact format": [(lies.refuses, {"start": 0, "end": 6, "format": "fp32"})],
    "refuse": REFUSERS,
    "calls the next hop gone": [(lies.calls_next_gone, {"start": 0, "end": 2})],
    "swallows steps": [(lies.opens, {"start": 0, "end": 2})],
    "two swallow steps": [(lies.opens, {"start": 0, "end": 2}), (lies.opens, {"start": 2, "end": 6})],
}


@pytest.fixture(scope="module")
def bf16(home, checkpoint):
    from .conftest import processes

    with processes(home / "liars", str(checkpoint), 6, format="bf16") as booted:
        yield booted


@pytest.fixture
def settings(bf16):
    return config.load(
        {"host": "127.0.0.1", "mdns": False, "threads": 1, "announce_s": 1.0}, {"SHOAL_HOME": str(bf16.home)}
    )


@asynccontextmanager
async def client(bf16, settings):
    """A client that nobody has answered yet, and how it asks."""
    async with open_swarm(settings, bf16.local.membership) as swarm:

        async def ask():
            answer = swarm.generate(bf16.model, PROMPT, max_tokens=TOKENS)
            async for _ in answer:
                pass
            return answer

        yield swarm, ask


@asynccontextmanager
async def liars(bf16, settings, kinds, like):
    async with AsyncExitStack() as stack:
        there = []
        for does, changes in kinds:
            joining = join_swarm(settings, bf16.local.membership, Identity.ephemeral(), listen=True)
            network, member = await stack.enter_async_context(joining)
            there.append(await stack.enter_async_context(lying(network, member, like, does, **changes)))
        yield there


async def test_a_client_beside_liars_gets_right_answers_and_is_done_with_them_after_two(
    bf16, settings, monkeypatch
):
    monkeypatch.setattr("shoal.client.ring.route_finder.TRIALS", 0.0)
    async with client(bf16, settings) as (swarm, ask):
        honest = (await ask()).token_ids
        like = swarm.announcements()[0].served
    for name, kinds in KINDS.items():
        async with (
            liars(bf16, settings, kinds, like) as lying_ones,
            client(bf16, settings) as (swarm, ask),
        ):
            with trio.fail_after(15):
                while not {one.peer for one in lying_ones} <= {a.peer for a in swarm.announcements()}:
                    await swarm.member.wait_changed()
            for _ in range(2):
                with trio.fail_after(FIRST_S):
                    assert (await ask()).token_ids == honest, name
            asked = [one.heard["Open"] for one in lying_ones]
            for _ in range(2):
                with trio.fail_after(FIRST_S):
                    assert (await ask()).token_ids == honest, name
            assert [one.heard["Open"] for one in lying_ones] == asked, name
