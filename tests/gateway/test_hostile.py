"""What strangers send: each gets one bounded error, and the next honest request its tokens."""

from __future__ import annotations

import dataclasses
import gc
import json
import socket
import threading
from contextlib import suppress
from functools import partial

import httpx
import pytest
import trio
import trio.testing

from shoal.errors import BadWeights
from shoal.gateway import body, serve
from shoal.gateway import models as models_module
from shoal.gateway.access.large_bodies import LargeBodies
from shoal.gateway.access.limits import RequestLimiter
from shoal.gateway.errors import BadRequest
from shoal.gateway.grammar import grammar as grammar_module
from shoal.gateway.grammar.fit import _fit_calls
from shoal.gateway.grammar.grammar import GrammarConstraint
from shoal.gateway.markup.dialects import Markup
from shoal.gateway.markup.reader import AnswerSyntax
from shoal.gateway.markup.tools import Calling
from shoal.gateway.models import Servable
from shoal.gateway.schema.common import Function
from shoal.models.text.codec import TextCodec
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.sim.model import MODEL
from shoal.types import Span

from .conftest import served, user

CHAT = "/v1/chat/completions"
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def shaped(schema):
    """A request for an answer by ``schema``."""
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


async def honest(gateway):
    """The tokens of an honest request, which nothing that came before may change."""
    answer = await gateway.chat("the sea is")
    assert answer.status_code == 200
    return answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 10**9},
        {"n": 0},
        {"messages": []},
        {"messages": "hello"},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "alien", "content": "a"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}
            ]
        },
        {"max_tokens": 0},
        {"max_tokens": 10**30},
        {"temperature": -1},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"seed": 10**40},
        {"logit_bias": {"999999": 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"1": 1e9}},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 10**6},
        {"stop": ["a"] * 1000},
        {"stop": ""},
        {"modalities": ["audio"]},
        {"functions": [{"name": "f"}]},
        {"tool_choice": "required"},
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template_kwargs": {"messages": 1}},
        {"chat_template_kwargs": {"__class__": 1}},
        {"response_format": {"type": "json_schema"}},
        shaped({"type": "alien"}),
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"pattern": "(", "type": "string"}},
            }
        },
        shaped({"$ref": "#/$defs/gone"}),
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 7}}}]},
        {"tools": [{"type": "function", "function": {"name": 'f"}\n'}}]},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
async def test_a_value_that_cannot_be_is_a_400_that_names_it(shared, fields):
    answer = await shared.chat(**fields)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert await honest(shared)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b'{"model": NaN}',
        DEEP.encode(),
        b'{"model": "MODEL", "messages": [{"role": "user", "content": "\\ud800"}]}',
        json.dumps({"model": "MODEL", "messages": [user("a")], "x": 0})[:-2].encode() + b"1" * 5000 + b"}",
    ],
    ids=["empty", "array", "text", "cut", "bytes", "nan", "deep", "surrogate", "long number"],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"])
async def test_a_body_that_is_none_is_a_400(shared, raw, path):
    answer = await shared.http.post(path, content=raw.replace(b"MODEL", shared.model.encode()))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [-1]},
        {"prompt": [300]},
        {"prompt": [2**40]},
        {"prompt": [1, "a"]},
        {"prompt": "a", "suffix": "b"},
        {"prompt": "a", "best_of": 5},
        {"prompt": ["a"] * 1000},
    ],
    ids=str,
)
async def test_a_prompt_that_cannot_be_is_a_400(shared, fields):
    assert (await shared.post("/v1/completions", **fields)).status_code == 400


async def test_a_prompt_beyond_the_context_is_refused_and_never_cut(shared):
    answer = await shared.post("/v1/completions", prompt=[5] * 2048)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert (await shared.chat("word " * 3000)).json()["error"]["code"] == "context_length_exceeded"


async def test_a_name_of_a_model_never_becomes_a_path_or_a_download(shared):
    for name in ("../../etc/passwd", "/", "some/repository", "gpt-4", "\n", "x" * 500):
        answer = await shared.chat(model=name)
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["code"] == "model_not_found"


async def test_a_large_body_is_refused_before_it_is_read(shared, monkeypatch):
    monkeypatch.setattr(body, "MAX_BODY", 10_000)

    async def endless():
        for _ in range(1000):
            yield b"a" * 1000

    assert (await shared.http.post(CHAT, content=b"a" * 20_000)).status_code == 413
    assert (await shared.http.post(CHAT, content=endless())).status_code == 413
    assert await honest(shared)


async def test_beyond_so_many_large_bodies_at_once_one_more_comes_back_later(shared, monkeypatch):
    monkeypatch.setattr(shared.gateway.limits, "bodies", LargeBodies(10_000, at_once=0))

    async def endless():
        for _ in range(1000):
            yield b"a" * 1000

    for content in (b"a" * 20_000, endless()):
        answer = await shared.http.post(CHAT, content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(answer.headers["retry-after"]) >= 1
    assert await honest(shared)


async def test_a_body_that_trickles_in_is_given_up(shared, monkeypatch):
    monkeypatch.setattr(body, "BODY_WITHIN_S", 0.3)

    async def slow():
        yield b"{"
        await trio.sleep(1)
        yield b"}"

    assert (await shared.http.post(CHAT, content=slow())).status_code == 408
    assert await honest(shared)


async def test_headers_that_trickle_in_are_given_up(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(serve, "HEADERS_WITHIN_S", 0.5)
    async with served(tmp_path, checkpoint) as gateway:
        stream = await trio.open_tcp_stream("127.0.0.1", httpx.URL(gateway.url).port)
        with trio.fail_after(15):
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ")
            assert await stream.receive_some() == b""
        assert await honest(gateway)


async def test_garbage_and_endless_headers_end_their_connection_alone(shared):
    for raw in (
        b"\x00" * 1000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 200_000,
        b"PRI * HTTP/2.0\r\n",
    ):
        stream = await trio.open_tcp_stream("127.0.0.1", httpx.URL(shared.url).port)
        # It may be closed before it has taken all.
        with trio.move_on_after(1), suppress(trio.BrokenResourceError):
            await stream.send_all(raw)
            while await stream.receive_some():
                pass
        await stream.aclose()
    assert await honest(shared)


async def test_a_client_that_goes_away_frees_every_hop(gateway):
    asked = {"model": gateway.model, "messages": [user("go on")], "max_tokens": 1500, "stream": True}
    asked["logit_bias"] = {"2": -100}
    async with gateway.http.stream("POST", CHAT, json=asked) as answer:
        lines = answer.aiter_lines()
        for _ in range(5):
            await anext(lines)
    await gateway.idle()
    (record,) = [r for r in gateway.gateway.records.shown() if r["tokens"] < 1500]
    assert record["state"] == "cancelled"
    assert gateway.gateway.limits.answering == 0
    assert await honest(gateway)


async def test_a_client_that_never_reads_is_let_go(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(serve, "SEND_WITHIN_S", 0.5)
    async with served(tmp_path, checkpoint) as gateway:
        raw = json.dumps(
            {
                "model": gateway.model,
                "messages": [user("go on")],
                "max_tokens": 1500,
                "stream": True,
                "logprobs": True,
                "top_logprobs": 20,
                "logit_bias": {"2": -100},
            }
        ).encode()
        deaf = trio.socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        await deaf.connect(("127.0.0.1", httpx.URL(gateway.url).port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n"
        await deaf.send(head.encode() + raw)
        with trio.fail_after(40):
            while [r["state"] for r in gateway.gateway.records.shown()] != ["cancelled"]:  # noqa: ASYNC110
                await trio.sleep(0.1)
        await gateway.idle()
        deaf.close()


async def test_a_lost_hop_mid_stream_is_one_error_event_and_a_close(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint) as gateway:
        asked = {"model": gateway.model, "messages": [user("go on")], "max_tokens": 1500, "stream": True}
        asked["logit_bias"] = {"2": -100}
        text = ""
        async with gateway.http.stream("POST", CHAT, json=asked) as answer:
            async for piece in answer.aiter_text():
                if text.count("data: ") < 5 <= (text + piece).count("data: "):
                    gateway.swarm.kill(1)
                text += piece
        *said, last = (json.loads(e[6:]) for e in text.split("\n\n") if e.startswith("data: "))
        assert "[DONE]" not in text
        assert last["error"]["code"] == "no_coverage"
        assert last["error"]["missing"] == ["2:3"]
        assert all("error" not in chunk for chunk in said)
        again = await gateway.chat()
        assert again.status_code == 503
        assert again.json()["error"]["missing"]


async def test_health_says_which_blocks_nobody_serves(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint, [Span(0, 2), Span(3, 6)]) as gateway:
        answer = await gateway.http.get("/health")
        assert answer.status_code == 503
        assert answer.json()["missing"] == {gateway.model: ["2:3"]}


async def test_requests_beyond_the_limits_come_back_later(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint) as gateway:
        gateway.gateway.desk.limits.__init__(running=1, waiting=1, wait_s=30)
        found = []

        async def one():
            found.append(await gateway.chat(max_tokens=30))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(one)
        statuses = [answer.status_code for answer in found]
        assert set(statuses) == {200, 429}
        refused = next(answer for answer in found if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert isinstance(gateway.gateway.limits, RequestLimiter)
        assert await honest(gateway)


@pytest.mark.parametrize("word", ["self", "answer"])
async def test_a_word_for_the_template_is_for_nothing_else(shared, word):
    answer = await shared.chat("the sea is", chat_template_kwargs={word: False})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == await honest(shared)


async def test_schemas_far_beyond_what_a_grammar_takes_are_refused_before_anything_is_tried(shared):
    large = {"type": "object"} | {f"key{i}": i for i in range(100_000)}
    answer = await shared.chat(**shaped(large))
    assert (answer.status_code, answer.json()["error"]["param"]) == (
        400,
        "response_format.json_schema.schema",
    )
    calling = Calling((Function(name="f", parameters=large),))  # as of a model with room for it in its prompt
    with pytest.raises(BadRequest, match="tools: schemas of"):
        _fit_calls(calling, AnswerSyntax(Markup()), lambda _: "")
    assert await honest(shared)


async def test_who_waits_too_long_for_schemas_of_others_may_come_back(gateway, monkeypatch):
    monkeypatch.setattr(grammar_module, "CHECKED_WITHIN_S", 0.2)
    done = threading.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(grammar_module.CHECKED_AT_ONCE):
            nursery.start_soon(gateway.gateway.grammars.checked, partial(done.wait, 20))
        await trio.testing.wait_all_tasks_blocked(0.05)
        try:
            with trio.fail_after(10):
                answer = await gateway.chat(**shaped({"type": "object"}))
        finally:
            done.set()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert (await gateway.chat(**shaped({"type": "object"}))).status_code == 200


async def test_of_a_flood_of_schemas_nothing_is_kept(gateway):
    """CVE-2025-29770: a cache of grammars fills the disk, or the memory, with one for each request."""

    async def one(number):
        schema = {"type": "object", "properties": {f"field{number}": {"type": "string", "maxLength": number}}}
        assert (await gateway.chat("the sea is", max_tokens=3, **shaped(schema))).status_code == 200

    expected = await honest(gateway)
    for first in range(0, 48, 16):
        async with trio.open_nursery() as nursery:
            for number in range(first, first + 16):
                nursery.start_soon(one, number + 1)
    await gateway.idle()
    gc.collect()
    assert not [kept for kept in gc.get_objects() if type(kept) is GrammarConstraint]
    assert await honest(gateway) == expected


TOKENIZERS = {
    "panics": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}},
    "aborts": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 99}] * 9,
        }
    },
}


EVERYWHERE = (CHAT, "/v1/completions", "/tokenize")


@pytest.mark.parametrize(("how", "paths"), [("panics", EVERYWHERE), ("aborts", EVERYWHERE[:1])])
async def test_a_model_whose_tokenizer_fails_is_an_error_of_that_model_alone(gateway, tmp_path, how, paths):
    """One that aborts fills the memory of its process first, which takes seconds: one path is enough."""
    folder = write_checkpoint(tmp_path / "evil", "llama", seed=7)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | TOKENIZERS[how]))
    evil = await trio.to_thread.run_sync(gateway.swarm.client.store.pull, str(folder))
    models = gateway.gateway.models
    models._looked = -models_module.LOOK_AGAIN_S  # it lies on the disk since now
    expected = await honest(gateway)
    for path in paths:
        fields = {"messages": [user("hello")]} if path == CHAT else {"prompt": "hello"}
        answer = await gateway.post(path, model=evil.name, **fields)
        assert answer.status_code == 502, answer.text
        assert answer.json()["error"]["code"] == "bad_weights"
        assert "tokenizer" in answer.json()["error"]["message"]
        assert await honest(gateway) == expected


def test_a_vocabulary_over_which_the_grammars_library_panics_is_an_error_of_the_model(tmp_path):
    folder = write_checkpoint(tmp_path / "evil", "llama")
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["vocab"]["a" * 3000] = max(whole["model"]["vocab"].values()) + 1
    path.write_text(json.dumps(whole))
    evil = Servable(dataclasses.replace(MODEL, path=folder), TextCodec.load(folder))
    with pytest.raises(BadWeights, match="PARENT_BITS"):
        grammar_module._read(evil)
