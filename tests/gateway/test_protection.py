"""The dial of protection over HTTP: by the body, a header or a key; and what an answer says of it."""

from __future__ import annotations

import json
from random import Random

import pytest
import trio

from shoal.client.audits.canary import canary_prompt, word_tokens
from shoal.gateway.access import keys
from shoal.gateway.access.keys import KeyLimits
from shoal.node import node
from shoal.swarm.audit_book import AuditBook
from shoal.testing.cheats import cheating
from shoal.trust.canary import CanaryTexts
from shoal.types import Span

from .conftest import served
from .stored.stored import line
from .test_chat import events

HALVES = [Span(0, 3), Span(3, 6)]
OPTIONS = {"format": "int8", "audit_budget": 6.0}


@pytest.fixture
async def audited(tmp_path, checkpoint):
    async with served(tmp_path / "home", checkpoint, HALVES, nodes=OPTIONS) as gateway:
        yield gateway


def protection(response):
    assert response.status_code == 200, response.text
    return response.json()["shoal"]["protection"]


async def test_a_request_says_how_its_answer_is_protected_and_the_answer_what_came_of_it(audited):
    plain = protection(await audited.chat())
    assert (plain["asked"], plain["level"], plain["audits"]) == ("fast", "fast", [])
    found = protection(await audited.chat(protect="audited"))
    assert (found["asked"], found["level"], found["faults"]) == ("audited", "audited", [])
    assert found["signed_by"] == [network.peer for network in audited.swarm.networks]
    assert {audit["verdict"] for audit in found["audits"]} == {"same"}
    assert {audit["peer"] for audit in found["audits"]} == set(found["signed_by"])
    assert 0 < found["audit_share"] <= found["audit_budget"] == 6.0
    shown = (await audited.chat(protect="perhaps")).json()["error"]
    assert (shown["param"], "audited" in shown["message"]) == ("protect", True)


async def test_a_canary_of_a_gateway_begins_as_its_conversations_do_and_is_counted(tmp_path, checkpoint):
    options = OPTIONS | {"canaries": 0.5}
    async with served(tmp_path / "home", checkpoint, HALVES, nodes=options) as gateway:
        swarm, question = gateway.gateway.swarm, "Why is the sea salt, and the river not? " * 3
        await gateway.chat(question, protect="audited")
        seen = swarm.audits.recent.draw(lambda: 0.0)
        local = swarm.store.find(seen.digest)
        codec = await swarm.codec(local)
        texts = CanaryTexts(word_tokens(codec, local.shape.vocab_size))
        prompt = canary_prompt(seen, texts, codec, Random(1).random)
        real = codec.prompt([{"role": "user", "content": question}]).token_ids
        assert seen.prompt == len(real)
        assert prompt[:4] == real[:4] and prompt[-4:] == real[-4:]
        assert len(real) <= len(prompt) < len(real) + 16
        found = await swarm.canaries.send_due()
        assert found.level == "audited" and len(found.audits) == 2
        assert 'shoal_canaries{result="same"} 1.0' in (await gateway.http.get("/metrics")).text


async def test_ollamas_routes_take_it_in_their_bodies(audited):
    for path, asked in (
        ("/api/chat", {"messages": [{"role": "user", "content": "a"}]}),
        ("/api/generate", {"prompt": "a"}),
    ):
        body = {"stream": False, "options": {"num_predict": 2}, "protect": "audited"} | asked
        assert (await audited.post(path, **body)).status_code == 200
        newest = audited.gateway.records.shown()[0]
        assert newest["protection"]["level"] == "audited"
        refused = await audited.post(path, **body | {"protect": "perhaps"})
        assert (refused.status_code, "audited" in refused.json()["error"]) == (400, True)


async def test_a_header_says_it_on_every_route_and_the_body_comes_before_it(audited):
    header = {"X-Shoal-Protect": "audited"}
    messages = [{"role": "user", "content": "hello"}]
    wanted = {"messages": messages, "headers": header}
    assert protection(await audited.post("/v1/chat/completions", **wanted))["level"] == "audited"
    assert protection(await audited.post("/v1/chat/completions", **wanted, protect="fast"))["level"] == "fast"
    assert protection(await audited.post("/v1/completions", header, prompt="a"))["level"] == "audited"
    refused = await audited.post("/v1/completions", {"X-Shoal-Protect": "none"}, prompt="a")
    assert refused.status_code == 400
    assert "fast, audited" in refused.text


async def test_a_batch_keeps_for_its_lines_what_its_own_header_says(audited):
    body = {"model": audited.model, "prompt": "a", "max_tokens": 4, "temperature": 0}
    lines = [line("kept", "/v1/completions", **body), line("own", "/v1/completions", **body, protect="fast")]
    files = {"file": ("in.jsonl", b"".join(lines)), "purpose": (None, "batch")}
    upload = (await audited.http.post("/v1/files", files=files)).json()
    asked = {"input_file_id": upload["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    header = {"X-Shoal-Protect": "audited"}
    batch = (await audited.http.post("/v1/batches", json=asked, headers=header)).json()
    with trio.fail_after(20):
        while batch["output_file_id"] is None:
            await trio.sleep(0.05)
            batch = (await audited.http.get(f"/v1/batches/{batch['id']}")).json()
    output = (await audited.http.get(f"/v1/files/{batch['output_file_id']}/content")).text
    answers = [json.loads(one) for one in output.splitlines()]
    said = {one["custom_id"]: one["response"]["body"]["shoal"]["protection"]["asked"] for one in answers}
    assert said == {"kept": "audited", "own": "fast"}


async def test_a_keys_answers_are_protected_as_it_says(audited):
    path = audited.gateway.database
    key, caller = keys.create(path, "careful", KeyLimits(), admin=False, protect="audited")
    other, _ = keys.create(path, "quick", KeyLimits(), admin=False)
    assert [record.caller.protect for record in keys.list_keys(path)] == ["audited", None]
    audited.gateway.keys.refresh()
    assert audited.gateway.keys.find(key) == caller
    for token, level in ((key, "audited"), (other, "fast")):
        said = await audited.post("/v1/completions", {"Authorization": f"Bearer {token}"}, prompt="a")
        assert protection(said)["level"] == level


async def test_a_stream_says_it_at_its_end_and_the_page_shows_it(audited):
    response = await audited.chat(protect="audited", stream=True)
    told = [one["shoal"] for one in events(response.text)[0] if "shoal" in one]
    assert told[-1]["protection"]["level"] == "audited"
    assert not any(one["protection"] for one in told[:-1])
    (record, *_) = audited.gateway.records.shown()
    assert record["protection"] == told[-1]["protection"]


async def test_a_session_of_a_hop_that_was_found_out_is_not_kept(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(node, "load_runner", cheating("noise"))
    async with served(tmp_path / "home", checkpoint, HALVES, nodes=OPTIONS) as gateway:
        monkeypatch.undo()
        found = protection(await gateway.chat(protect="audited", n=2))
        assert found["level"] == "fast"
        assert {audit["verdict"] for audit in found["audits"]} == {"cheat"}
        assert gateway.gateway.prefixes.kept == 0


async def test_consensus_is_asked_for_as_other_levels_are_and_says_what_it_lacks(audited):
    for asked in ({"protect": "consensus"}, {"headers": {"X-Shoal-Protect": "consensus"}}):
        messages = [{"role": "user", "content": "hello"}]
        found = protection(await audited.post("/v1/chat/completions", messages=messages, **asked))
        assert (found["asked"], found["level"], len(found["replicas"])) == ("consensus", "fast", 1)
        assert "1 of 3 replicas" in found["faults"][0]
    for span in HALVES * 2:
        await audited.swarm.add_node(span, format="int8")
    found = protection(await audited.chat(protect="consensus"))
    assert (found["level"], len(found["replicas"]), found["replica_compute"]) == ("consensus", 3, 2.0)


async def test_a_proof_is_asked_for_as_other_levels_are_and_shown(audited):
    for asked in ({"protect": "proved"}, {"headers": {"X-Shoal-Protect": "proved"}}):
        messages = [{"role": "user", "content": "hello"}]
        found = protection(await audited.post("/v1/chat/completions", messages=messages, **asked))
        assert (found["asked"], found["level"], found["faults"]) == ("proved", "proved", [])
        (proof,) = found["audits"]
        assert proof["start"] <= proof["block"] < proof["end"]
        assert (proof["verdict"], proof["by"]) == ("same", ["this machine"])


async def test_choices_that_share_a_prompt_are_counted_once_with_it(audited):
    book, before = AuditBook(audited.swarm.client.settings.paths.audits), 0.0
    earned = []
    for choices in (1, 4):
        asked = await audited.chat("word " * 100, protect="audited", n=choices, max_tokens=4)
        assert asked.status_code == 200
        prompt = asked.json()["usage"]["prompt_tokens"]
        now = book.read().account.earned
        earned.append((now - before) / 6)  # through six blocks
        before = now
    assert prompt <= earned[0] <= prompt + 4
    assert earned[1] <= prompt + 4 * 4


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_the_last_text_is_told_before_anything_is_audited(audited, monkeypatch, path):
    audits, may_end = audited.gateway.desk.answers.audits, trio.Event()
    protect = audits.protect

    async def waits(*asked):
        await may_end.wait()
        return await protect(*asked)

    monkeypatch.setattr(audits, "protect", waits)
    asked = {"prompt": "hello", "messages": [{"role": "user", "content": "hello"}]}
    del asked["messages" if path == "/v1/completions" else "prompt"]
    body = {"model": audited.model, "temperature": 0, "max_tokens": 8, "protect": "audited"} | asked

    def text_of(choice):
        return choice.get("text") or choice.get("delta", choice.get("message", {})).get("content") or ""

    may_end.set()
    whole = text_of((await audited.http.post(path, json=body)).json()["choices"][0])
    may_end, said, ends = trio.Event(), "", []
    with trio.fail_after(20):
        async with audited.http.stream("POST", path, json=body | {"stream": True}) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                said += text_of(choice)
                ends.append(choice["finish_reason"])
                if said == whole:
                    may_end.set()  # before that, the test waits in vain
    assert (said, len(whole) > 0) == (whole, True)
    assert ends[-1] is not None and not any(ends[:-1])
