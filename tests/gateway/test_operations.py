"""What whoever runs a gateway relies on: figures, health, an order in the queue, defects that stay inside."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import trio
from prometheus_client.parser import text_string_to_metric_families

from shoal.errors import Busy
from shoal.gateway import prefixes
from shoal.gateway.access import keys
from shoal.gateway.access.keys import KeyLimits
from shoal.gateway.access.usage import Usage, Used, report
from shoal.gateway.api import chat
from shoal.gateway.app import Gateway
from shoal.gateway.models import Models
from shoal.gateway.page import feed
from shoal.gateway.stored.batches.runner import BatchRunner
from shoal.models.text.codec import TextCodec
from shoal.testing.swarm import memory_swarm
from tests.one_process import KERNELS

from .conftest import kept_in, served, user
from .test_live import told


async def figures(gateway):
    text = (await gateway.http.get("/metrics")).text
    return {
        (s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }


async def test_prometheus_finds_the_figures_by_the_names_it_knows_from_others(gateway):
    usage = (await gateway.chat(max_tokens=5, logit_bias={2: -100})).json()["usage"]
    found, model = await figures(gateway), gateway.model
    assert found["shoal_generation_tokens_total", model] == usage["completion_tokens"] == 5
    assert found["shoal_prompt_tokens_total", model] == usage["prompt_tokens"]
    assert found["shoal_time_to_first_token_seconds_count", model] == 1
    assert found["shoal_inter_token_latency_seconds_count", model] == 4
    assert found["shoal_e2e_request_latency_seconds_count", model] == 1
    assert found["shoal_request_success_total", "length", model] == 1
    for name in ("num_requests_running", "num_requests_waiting", "blocks_missing"):
        assert {value for key, value in found.items() if key[0] == f"shoal_{name}"} == {0}, name
    assert found["shoal_peers",] == 3
    assert 0 <= found["shoal_kv_cache_usage_perc",] < 1


async def test_it_is_not_well_before_it_has_loaded(tmp_path, checkpoint, monkeypatch):
    may_go_on = trio.Event()
    load = Models.load

    async def slow(models):
        await may_go_on.wait()
        return await load(models)

    monkeypatch.setattr(Models, "load", slow)
    async with served(tmp_path, checkpoint, ready=False) as gateway:
        answer = await gateway.http.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
        may_go_on.set()
        with trio.fail_after(10):
            while (await gateway.http.get("/health")).status_code != 200:  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_a_models_tokenizer_is_loaded_once_however_many_ask_for_it_at_once(
    tmp_path, checkpoint, monkeypatch
):
    """It takes two processes, and a large one half a gigabyte."""
    async with memory_swarm(tmp_path, checkpoint, [], **KERNELS) as swarm:
        loads, load = [], TextCodec.load
        monkeypatch.setattr(TextCodec, "load", lambda path: loads.append(path) or load(path))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(swarm.client.codec, swarm.model)
        assert loads == [swarm.model.path]


async def test_a_defect_is_one_answer_that_tells_nothing_of_our_insides(gateway, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("the secret of the house")

    with monkeypatch.context() as patch:
        patch.setattr(chat, "fit", broken)
        answer = await gateway.chat()
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in error["message"]
    assert answer.headers["x-request-id"] in caplog.text
    assert (await gateway.chat()).status_code == 200


async def test_the_id_of_an_answer_is_ours_whatever_the_client_calls_it(gateway):
    ids = {
        (await gateway.http.get("/v1/models", headers={"x-request-id": "mine"})).headers["x-request-id"]
        for _ in range(3)
    }
    assert len(ids) == 3
    assert "mine" not in ids


async def test_who_waits_for_room_on_the_hops_is_served_in_order(gateway, monkeypatch):
    ours, full, served_first = gateway.gateway.prefixes, True, []
    open_session = ours._open

    async def open_when_there_is_room(owner, asked):
        if full:
            raise Busy("no room", retry_after_s=1)
        served_first.append(asked.max_tokens)
        return await open_session(owner, asked)

    monkeypatch.setattr(ours, "_open", open_when_there_is_room)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number, tokens in enumerate((40, 30, 20)):
                nursery.start_soon(partial(gateway.chat, max_tokens=tokens))
                while not ours._line.locked() or ours._line.statistics().tasks_waiting < number:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            full = False
    assert served_first == [40, 30, 20]


async def test_who_has_waited_too_long_for_room_is_told_when_to_come_back(gateway, monkeypatch):
    async def never(*_):
        raise Busy("no room", retry_after_s=1)

    monkeypatch.setattr(gateway.gateway.prefixes, "_open", never)
    monkeypatch.setattr(prefixes, "BUSY_S", 0.3)
    answer = await gateway.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_conversation_that_does_not_go_on_is_given_up(gateway, monkeypatch):
    monkeypatch.setattr(prefixes, "KEPT_S", 0.2)
    await gateway.chat()
    assert gateway.gateway.prefixes.kept == 1
    with trio.fail_after(25):
        while gateway.gateway.prefixes.kept or any(n.server.sessions for n in gateway.swarm.nodes):  # noqa: ASYNC110
            await trio.sleep(0.05)


async def test_a_page_that_does_not_keep_up_is_let_go_and_comes_back(gateway, monkeypatch):
    monkeypatch.setattr(feed, "QUEUED", 0)  # a second event at once is one too many
    live = gateway.gateway.feed
    async with gateway.http.stream("GET", "/api/events") as answer:
        lines = answer.aiter_lines()
        await told(lines, "health")
        live._changed |= {"requests", "swarm"}
        with trio.fail_after(25):
            async for _ in lines:
                pass
    assert not live._listeners
    async with gateway.http.stream("GET", "/api/events") as answer:
        assert (await told(answer.aiter_lines(), "swarm"))["peers"]


async def test_a_wrong_key_is_compared_with_all_there_are_in_a_time_that_tells_nothing(
    tmp_path, checkpoint, monkeypatch
):
    for name in ("laptop", "phone"):
        key, _ = keys.create(kept_in(tmp_path), name, KeyLimits(), admin=False)
    compared, compare = [], keys.hmac.compare_digest
    async with served(tmp_path, checkpoint) as gateway:
        monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(b) or compare(a, b))
        assert (await gateway.http.get("/v1/models", headers={"x-api-key": key[:-1]})).status_code == 401
    assert len(compared) == 2


async def test_a_prompt_that_nobody_computed_is_charged_to_nobody_and_a_batch_counts_no_request_twice(
    gateway, monkeypatch
):
    async def busy(asked, caller):
        raise Busy("no room", retry_after_s=1.0)

    usage, body = gateway.gateway.usage, {"model": gateway.model, "messages": [user("hi")], "max_tokens": 2}
    line = replace(keys.LOCAL, id="key_line", background=True)

    async def counted():
        await usage._write()
        return {account.caller: used for account, used in report(usage.database)}

    with monkeypatch.context() as patched:
        patched.setattr(gateway.gateway.prefixes, "lease", busy)
        assert (await gateway.chat()).status_code == 429
        for _ in range(2):
            assert (await gateway.gateway._ask("/v1/chat/completions", body, line)).status == 429
    assert await counted() == {"local": Used(1, 0, 0)}
    assert (await gateway.gateway._ask("/v1/chat/completions", body, line)).status == 200
    used = (await counted())["key_line"]
    assert (used.requests, used.prompt_tokens > 0, used.completion_tokens) == (1, True, 2)


async def test_what_is_used_while_a_gateway_ends_is_written(tmp_path, checkpoint, monkeypatch):
    async def run(runner):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.2)
            gateway.gateway.usage.count("key_late", "m", 1, 2)

    monkeypatch.setattr(BatchRunner, "run", run)
    async with served(tmp_path, checkpoint, ready=False) as gateway:
        pass
    assert {account.caller: used for account, used in report(gateway.gateway.database)} == {
        "key_late": Used(1, 1, 2)
    }


async def test_a_gateway_that_is_given_up_while_it_starts_ends(tmp_path):
    for checkpoints in range(12):
        gateway = Gateway.__new__(Gateway)
        gateway._shared, gateway.usage, over = None, Usage(kept_in(tmp_path)), trio.Event()
        with trio.fail_after(25), trio.CancelScope() as given_up:
            async with trio.open_nursery() as nursery:

                async def give_up(scope=given_up, many=checkpoints):
                    for _ in range(many):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(give_up)
                try:
                    await nursery.start(gateway._count, over)
                    await trio.sleep_forever()
                finally:
                    over.set()
        assert given_up.cancelled_caught
