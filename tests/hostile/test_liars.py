"""Members that lie: what they announce takes nobody's traffic, and what they do is held against them alone.

After each kind of lie: every answer is what the whole model gives, the first comes in seconds, and after two
sessions the liar is asked no more.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio

from shoal.client.ring import route_finder
from shoal.client.swarm import Swarm
from shoal.errors import Busy
from shoal.routing import reputation
from shoal.routing.replace import ReplaceDecision
from shoal.swarm.announcement import candidate
from shoal.testing import liar as lies
from shoal.testing.liar import lying
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from tests.one_process import KERNELS
from tests.shared_codecs import share_codec

from .conftest import BLOCKS, PROMPT

HALVES = [Span(0, 3), Span(3, 6)]
TOKENS = 6
SECONDS = 9.0
"""For an answer of a busy machine, too: less than a hop may take to open a session."""
WHOLE, FIRST, SECOND = Span(0, BLOCKS), *HALVES
CANDIDATES = [*HALVES, Span(0, 6)]
BOAST = 1e12
"""The speed that liars announce, and no honest peer."""


@pytest.fixture(autouse=True)
def no_trials(monkeypatch):
    """Whether a session is a trial is left to chance; tests that are about trials say so."""
    monkeypatch.setattr("shoal.client.ring.route_finder.TRIALS", 0.0)


@pytest.fixture
def alike(monkeypatch):
    """Honest peers are alike but for their names: on a busy machine those that answer are slower than they
    say. What liars claim stays as it is."""

    def offer(peer, served, rtt_s, here):
        if served.speed >= BOAST:
            return candidate(peer, served, rtt_s, here)
        known = candidate(peer, served, 0.001)
        return replace(known, step_s=0.001 * len(served.span), wait_s=0.0, sending_s=0.0)

    monkeypatch.setattr(route_finder, "candidate", offer)
    paced = reputation.Reputation.paced
    monkeypatch.setattr(reputation.Reputation, "paced", lambda self, peer, _: paced(self, peer, 0.001))
    stay = ReplaceDecision(None, "all are alike")
    monkeypatch.setattr(route_finder.RouteFinder, "weigh", lambda *_, **__: stay)


@pytest.fixture
async def swarm(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, HALVES, **KERNELS) as swarm:
        await share_codec(swarm.client, swarm.model)
        yield swarm


@asynccontextmanager
async def liars(swarm, *kinds):
    """Members that lie: each ``(what it does, the span that it announces, other changes)``."""
    like = swarm.client.announcements()[0].served
    async with AsyncExitStack() as stack:
        lying_ones = []
        for does, span, *changes in kinds:
            network = swarm.world.network()
            member = await swarm._member(network)
            changed = {"start": span.start, "end": span.end} | (changes[0] if changes else {})
            lying_ones.append(await stack.enter_async_context(lying(network, member, like, does, **changed)))
        await heard(swarm.client, {liar.peer for liar in lying_ones})
        yield lying_ones


async def heard(client, peers):
    with trio.fail_after(30):
        while not peers <= {a.peer for a in client.announcements()}:  # noqa: ASYNC110
            await trio.sleep(0.02)


async def answered(client: Swarm, checkpoint, whole, within_s):
    """An answer, which must be right, and be whole in time."""
    answer = client.generate(str(checkpoint), PROMPT, max_tokens=TOKENS)
    with trio.fail_after(within_s):
        async for _ in answer:
            pass
    assert answer.token_ids == whole.greedy(PROMPT, TOKENS)
    return answer


async def let_them_lie(client, checkpoint, whole, lying_ones, *, first_s=SECONDS, sessions=2):
    """Answers while they lie; after so many sessions none of them is asked."""
    await answered(client, checkpoint, whole, first_s)
    for _ in range(sessions - 1):
        await answered(client, checkpoint, whole, first_s)
    before = [liar.heard["Open"] for liar in lying_ones]
    for _ in range(3):
        await answered(client, checkpoint, whole, SECONDS)
    assert [liar.heard["Open"] for liar in lying_ones] == before
    return before


@pytest.mark.parametrize(
    "does",
    [
        lies.refuses,
        lies.says_nothing,
        lies.opens,
        lies.calls_next_gone,
        lies.calls_next_gone_at_once,
        lies.keeps_what_it_has,
        lies.fails_blamelessly,
        lies.cannot_go_back,
        lies.passes_on(number=1 << 40),
        lies.passes_on(position=1),
        lies.passes_on(wanted=1),
        lies.passes_on(tokens=1),
        lies.passes_on(number=-1),
        lies.recodes("bfloat16"),
    ],
)
async def test_a_first_hop_that_lies_is_out_after_two_sessions(swarm, checkpoint, whole, does):
    async with liars(swarm, (does, FIRST)) as lying_ones:
        await let_them_lie(swarm.client, checkpoint, whole, lying_ones)


@pytest.mark.parametrize("does", [lies.refuses, lies.opens, lies.passes_on(position=1)])
async def test_one_that_announces_the_whole_model_and_lies_is_out_after_two_sessions(
    swarm, checkpoint, whole, does
):
    async with liars(swarm, (does, WHOLE)) as lying_ones:
        before = await let_them_lie(swarm.client, checkpoint, whole, lying_ones)
        assert before[0] >= 1, "it was never asked: nothing was tested"


@pytest.mark.parametrize(
    "does",
    [
        lies.hangs_up_on_hops,
        lies.opens,
        lies.passes_on(number=1 << 40),
        lies.denies_what_it_got,
        lies.creeps,
        lies.opens_after(0.4),
        lies.opens_after(6.0),
    ],
)
async def test_a_last_hop_that_lies_is_out_after_two_sessions(swarm, checkpoint, whole, does):
    async with liars(swarm, (does, SECOND)) as lying_ones:
        await let_them_lie(swarm.client, checkpoint, whole, lying_ones)


@pytest.mark.parametrize("does", [lies.opens, lies.passes_on(number=1 << 40)])
async def test_two_liars_together_are_out_too(swarm, checkpoint, whole, does):
    async with liars(swarm, (does, FIRST), (lies.opens, SECOND)) as lying_ones:
        await let_them_lie(swarm.client, checkpoint, whole, lying_ones, first_s=2 * SECONDS)


async def test_peers_that_have_answered_go_before_what_anybody_announces(swarm, checkpoint, whole, alike):
    for _ in range(2):
        await answered(swarm.client, checkpoint, whole, SECONDS)
    better = [(lies.opens, WHOLE), (lies.opens, WHOLE, {"format": "bf16"}), (lies.opens, FIRST)]
    async with liars(swarm, *better) as lying_ones:
        for _ in range(4):
            await answered(swarm.client, checkpoint, whole, SECONDS)
        assert [liar.heard["Open"] for liar in lying_ones] == [0, 0, 0]


async def test_a_more_exact_format_that_one_peer_announces_takes_nobody(tmp_path, checkpoint):
    async with (
        memory_swarm(tmp_path / "home", checkpoint, HALVES, format="bf16") as swarm,
        liars(swarm, (lies.opens, WHOLE, {"format": "fp32"})) as lying_ones,
    ):
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            assert session.ring.format == "bf16"
        assert lying_ones[0].heard["Open"] == 0


async def test_many_that_announce_no_bits_take_nobody_where_hops_are_alike(swarm, checkpoint):
    crowd = [(lies.opens, WHOLE, {"numerics": "n1/int8/auto/any"})] * 4
    async with liars(swarm, *crowd) as lying_ones:
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            assert str(session.ring.numerics) == "n1/int8/auto/rows"
        assert sum(liar.heard["Open"] for liar in lying_ones) == 0


async def test_a_format_whose_peers_all_refuse_gives_way_to_the_next_within_one_request(tmp_path, checkpoint):
    crowd = [(lies.refuses, WHOLE, {"format": "fp32", "numerics": "n1/fp32/auto/modules"})] * 4
    async with (
        memory_swarm(tmp_path / "home", checkpoint, HALVES, format="bf16") as swarm,
        liars(swarm, *crowd) as lying_ones,
    ):
        with trio.fail_after(SECONDS):
            async with swarm.client.session(str(checkpoint), tokens=64) as session:
                assert session.ring.format == "bf16"
        assert sum(liar.heard["Open"] for liar in lying_ones) == 4


async def test_a_client_that_has_only_heard_of_a_liar_waits_for_others(tmp_path, checkpoint, whole):
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [FIRST], **KERNELS) as swarm,
        liars(swarm, (lies.refuses, WHOLE)) as (liar,),
        trio.open_nursery() as nursery,
    ):

        async def come_when_it_has_refused():
            while not liar.heard["Open"]:  # noqa: ASYNC110
                await trio.sleep(0.02)
            await swarm.add_node(SECOND, **KERNELS)

        nursery.start_soon(come_when_it_has_refused)
        await answered(swarm.client, checkpoint, whole, SECONDS)


async def test_one_whose_numerics_nobody_knows_keeps_no_client_from_hearing_of_others(
    tmp_path, checkpoint, whole
):
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [FIRST], **KERNELS) as swarm,
        liars(swarm, (lies.opens, WHOLE, {"numerics": "n2/int8/auto/rows"})) as (liar,),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(swarm.add_node, SECOND, **KERNELS))
        await answered(swarm.client, checkpoint, whole, SECONDS)
        assert liar.heard["Open"] == 0


async def test_a_client_that_only_a_liar_answers_is_told_so_within_seconds(tmp_path, checkpoint):
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [FIRST], **KERNELS) as swarm,
        liars(swarm, (lies.refuses, WHOLE)),
    ):
        with trio.fail_after(SECONDS), pytest.raises(Busy):
            async with swarm.client.session(str(checkpoint), tokens=64):
                pass


async def test_many_that_refuse_delay_the_first_answer_by_little_and_the_next_by_nothing(
    swarm, checkpoint, whole
):
    async with liars(swarm, *[(lies.refuses, WHOLE)] * 10) as lying_ones:
        await let_them_lie(swarm.client, checkpoint, whole, lying_ones)


async def test_a_share_of_the_sessions_tries_newcomers_who_then_are_proven(
    swarm, checkpoint, whole, alike, monkeypatch
):
    for _ in range(2):
        await answered(swarm.client, checkpoint, whole, SECONDS)
    await swarm.add_node(WHOLE, **KERNELS)
    newcomer = swarm.networks[-1].peer
    await heard(swarm.client, {newcomer})
    assert len((await answered(swarm.client, checkpoint, whole, SECONDS)).route) == 2
    monkeypatch.setattr("shoal.client.ring.route_finder.TRIALS", 1.0)
    for _ in range(reputation.PROVEN):
        await answered(swarm.client, checkpoint, whole, SECONDS)
    assert swarm.client.rings.finder.reputation.proven(newcomer)


async def test_an_honest_hop_that_is_called_gone_stays_in_the_session(swarm, checkpoint, whole):
    for _ in range(2):
        await answered(swarm.client, checkpoint, whole, SECONDS)
    async with liars(swarm, (lies.calls_next_gone, FIRST)):
        answer = await answered(swarm.client, checkpoint, whole, SECONDS)
        assert {hop.peer for hop in answer.route} == {network.peer for network in swarm.networks}
