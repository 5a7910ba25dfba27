"""The next turn of a conversation at another gateway, or after a restart: hops have kept what they can."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import httpx
import trio

from shoal.client.ring import route_finder
from shoal.errors import OutOfResources
from shoal.gateway.access import keys
from shoal.gateway.access.keys import KeyLimits
from shoal.gateway.app import Options, open_gateway
from shoal.gateway.database.cache_secret import read_cache_secret, secret_of
from shoal.gateway.serve import serve
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from tests.one_process import KERNELS
from tests.shared_codecs import share_codec

from .conftest import ELSEWHERE, THIRDS, Served, kept_in, user

LONG = [user(" ".join(f"fish {number} swims in the sea" for number in range(20)))]


@asynccontextmanager
async def another(swarm, checkpoint, database, *, fresh=False, **options):
    """A gateway of its own client before a swarm that is there; a ``fresh`` one's codec is its own, too."""
    client = await swarm.add_client(**KERNELS | options)
    if not fresh:
        await share_codec(client, swarm.model)
    async with trio.open_nursery() as nursery:
        settings = Options(
            model=str(checkpoint), database=database, swarm="home", invite=lambda: ELSEWHERE, health=list
        )
        async with open_gateway(client, settings) as gateway:
            url = await nursery.start(partial(serve, gateway.app, "127.0.0.1", 0))
            async with httpx.AsyncClient(base_url=url, timeout=30, verify=False) as http:
                with trio.fail_after(10):
                    heard = lambda: sum(a.served is not None for a in client.announcements())  # noqa: E731
                    while not gateway.ready or heard() < len(swarm.nodes):  # noqa: ASYNC110
                        await trio.sleep(0.01)
                yield Served(url, gateway, swarm, checkpoint.name, http)
        nursery.cancel_scope.cancel()


async def asked(gateway, messages, key=None, **fields):
    """The text of an answer, the tokens of its prompt, and how many of them were not computed for it."""
    headers = {"x-api-key": key} if key else None
    answer = (await gateway.post("/v1/chat/completions", headers, messages=messages, **fields)).json()
    usage = answer["usage"]
    text = answer["choices"][0]["message"]["content"]
    return text, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def next_turn(text):
    return [*LONG, {"role": "assistant", "content": text}, user("and then?")]


async def test_the_next_turn_at_another_gateway_begins_where_hops_have_kept_it(tmp_path, checkpoint):
    database = kept_in(tmp_path)
    async with (
        memory_swarm(tmp_path, checkpoint, THIRDS, **KERNELS) as swarm,
        another(swarm, checkpoint, database) as one,
        another(swarm, checkpoint, database) as other,
    ):
        text, prompt, cached = await asked(one, LONG)
        assert cached == 0
        said, longer, cached = await asked(other, next_turn(text))
        assert prompt - 64 <= cached < longer
        metrics = (await other.http.get("/metrics")).text
        hits = next(line for line in metrics.splitlines() if line.startswith("shoal_prefix_cache_hits_total"))
        assert float(hits.split()[-1]) == cached
        # As if it had been computed anew, and the first gateway has nothing of it any more.
        assert (await asked(one, next_turn(text), cache_salt="new"))[0] == said
        assert one.gateway.prefixes.kept == 1
        # Back to the first one.
        assert (await asked(one, next_turn(text)))[2] >= cached


async def test_hops_keep_it_although_the_database_went_away_before_the_first_turn(
    tmp_path, checkpoint, monkeypatch
):
    database = kept_in(tmp_path)
    async with (
        memory_swarm(tmp_path, checkpoint, THIRDS, **KERNELS) as swarm,
        another(swarm, checkpoint, database) as one,
        another(swarm, checkpoint, database) as other,
    ):

        async def away(*_):
            raise OutOfResources("away")

        monkeypatch.setattr(database, "run_short", away)
        text, prompt, _ = await asked(one, LONG)
        assert (await asked(other, next_turn(text)))[2] >= prompt - 64


async def test_of_nodes_that_are_alike_each_gateway_finds_those_that_have_kept_it(
    tmp_path, checkpoint, monkeypatch
):
    monkeypatch.setattr(route_finder, "TRIALS", 0)
    database = kept_in(tmp_path)
    async with (
        memory_swarm(tmp_path, checkpoint, [Span(0, 6)] * 3, **KERNELS) as swarm,
        another(swarm, checkpoint, database) as one,
        another(swarm, checkpoint, database) as other,
    ):
        for salt in ("a", "b", "c", "d"):
            for gateway, least in ((one, 0), (other, 64)):
                assert (await asked(gateway, LONG, cache_salt=salt))[2] >= least


async def test_the_next_turn_after_a_restart_begins_where_hops_have_kept_it(tmp_path, checkpoint):
    async with memory_swarm(tmp_path, checkpoint, THIRDS, **KERNELS) as swarm:
        async with another(swarm, checkpoint, kept_in(tmp_path)) as gateway:
            text, prompt, _ = await asked(gateway, LONG)
        async with another(swarm, checkpoint, kept_in(tmp_path)) as gateway:
            assert (await asked(gateway, next_turn(text)))[2] >= prompt - 64


async def test_a_gateway_that_nobody_has_asked_yet_is_ready_to_answer(tmp_path, checkpoint):
    async with (
        memory_swarm(tmp_path, checkpoint, THIRDS, **KERNELS) as swarm,
        another(swarm, checkpoint, kept_in(tmp_path), fresh=True) as gateway,
    ):
        local = await gateway.gateway.swarm.resolve(str(checkpoint))
        with trio.fail_after(10):
            while not gateway.gateway.swarm.rings.ends:  # noqa: ASYNC110
                await trio.sleep(0.01)
        codec = await gateway.gateway.swarm.codec(local)
        assert "end_tokens" in vars(codec)  # for which the tokenizer and the template were asked


async def test_what_hops_have_kept_is_for_the_same_key_and_salt_alone(tmp_path, checkpoint):
    database = kept_in(tmp_path)
    mine, yours = [keys.create(database, name, KeyLimits(), admin=False)[0] for name in ("a", "b")]
    async with (
        memory_swarm(tmp_path, checkpoint, THIRDS, **KERNELS) as swarm,
        another(swarm, checkpoint, database) as one,
        another(swarm, checkpoint, database) as other,
    ):
        await asked(one, LONG, mine)
        assert (await asked(other, LONG, yours))[2] == 0
        assert (await asked(other, LONG, mine, cache_salt="x"))[2] == 0
        assert (await asked(other, LONG, mine))[2] > 0


async def test_what_is_audited_takes_nothing_that_hops_have_kept(tmp_path, checkpoint):
    database = kept_in(tmp_path)
    async with (
        memory_swarm(tmp_path, checkpoint, THIRDS, **KERNELS) as swarm,
        another(swarm, checkpoint, database) as one,
        another(swarm, checkpoint, database) as other,
    ):
        await asked(one, LONG)
        assert (await asked(other, LONG, protect="audited"))[2] == 0
        assert (await asked(other, LONG, receipts=True))[2] > 0  # of its own, which it has seen


async def test_what_a_liar_had_a_part_in_is_not_gone_on_with(tmp_path, checkpoint):
    async with (
        memory_swarm(tmp_path, checkpoint, [Span(0, 6)] * 2, **KERNELS) as swarm,
        another(swarm, checkpoint, kept_in(tmp_path)) as gateway,
    ):
        text, _, _ = await asked(gateway, LONG)
        (lease,) = gateway.gateway.prefixes._kept
        (liar,) = lease.session.ring.route
        reputation = gateway.gateway.prefixes._swarm.rings.finder.reputation
        reputation.lied(liar.address.peer, trio.current_time())
        assert (await asked(gateway, next_turn(text)))[2] == 0
        (hop,) = gateway.gateway.prefixes._kept[-1].session.ring.route
        assert hop.address.peer != liar.address.peer


async def test_a_secret_is_made_once_and_another_follows_for_each_owner(database):
    secret = read_cache_secret(database)
    assert secret == read_cache_secret(database)
    assert len({secret_of(secret, words) for words in (("a", "bc"), ("ab", "c"), ("a", "bc", ""))}) == 3
