"""Embeddings over HTTP: OpenAI's and Ollama's own clients, unchanged, and what others may send."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from functools import partial

import httpx
import numpy as np
import ollama
import openai
import pytest
import torch
import trio
from anyio.from_thread import start_blocking_portal
from tokenizers import Tokenizer
from transformers import AutoModel

from shoal.errors import Busy
from shoal.gateway.access.keys import KeyLimits, create
from shoal.testing.encoders import write_encoder, write_pooling

from .conftest import MODULES, kept_in, served, user

TEXTS = ["hello world", "the sea is wide", "w"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = write_encoder(tmp_path_factory.mktemp("bert") / "bert")
    write_pooling(folder, "mean_tokens", max_seq_length=100)
    return folder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory, bert):
    """A gateway before three nodes that serve an encoder, in a thread of its own."""
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(
            served(tmp_path_factory.mktemp("embedder"), bert, nodes=MODULES)
        ) as found,
    ):
        yield found


def token_ids(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


@pytest.fixture(scope="module")
def expected(bert):
    """What transformers gives for the texts, one by one: the mean of the last hidden states."""
    model = AutoModel.from_pretrained(bert, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [model(torch.tensor([ids])).last_hidden_state[0].mean(0) for ids in token_ids(bert)]
    return torch.stack(rows).numpy()


def by_openai(served, use):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        return use(partial(client.embeddings.create, model=served.model))


def post(served, path, **fields):
    return httpx.post(served.url + path, json={"model": served.model} | fields, timeout=30)


def close(found, expected):
    np.testing.assert_allclose(np.array(found, np.float32), expected, atol=1e-6, rtol=0)


def test_openais_client_gets_what_transformers_gives(embedder, expected):
    plain = by_openai(embedder, lambda create: create(input=TEXTS, encoding_format="float"))
    close([item.embedding for item in plain.data], expected)
    assert [item.index for item in plain.data] == [0, 1, 2]
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > len(TEXTS)
    # Of itself the client asks for base64.
    coded = by_openai(embedder, lambda create: create(input=TEXTS))
    assert [item.embedding for item in coded.data] == [item.embedding for item in plain.data]
    short = by_openai(embedder, lambda create: create(input=TEXTS[0], dimensions=4))
    close(short.data[0].embedding, expected[0][:4])


def test_token_ids_are_taken_as_they_are(embedder, bert, expected):
    batch = token_ids(bert)
    several = by_openai(embedder, lambda create: create(input=batch))
    close([item.embedding for item in several.data], expected)
    one = by_openai(embedder, lambda create: create(input=batch[1]))
    close(one.data[0].embedding, expected[1])
    assert one.usage.prompt_tokens == len(batch[1])


def test_base64_holds_little_endian_floats(embedder, expected):
    answer = post(embedder, "/v1/embeddings", input="hello world", encoding_format="base64").json()
    assert (answer["object"], answer["data"][0]["object"]) == ("list", "embedding")
    close(np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4"), expected[0])
    assert [stage["start"] for stage in answer["shoal"]["route"]] == [0, 2, 3]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"input": ""}, "input", "must not be empty"),
        ({"input": []}, "input", "must not be empty"),
        ({"input": [""]}, "input.0", "must not be empty"),
        ({"input": ["a", 1]}, "input.1", "string"),
        ({"input": {"a": 1}}, "input", "must be a string, a list of token ids, or a list of either"),
        ({}, "input", "missing"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "dimensions": 0}, "dimensions", "must be at least 1"),
        ({"input": "a", "dimensions": 65}, None, "dimensions must be in 1..64"),
        ({"input": [300]}, None, "outside of the vocabulary of 300 tokens"),
    ],
)
def test_what_cannot_be_embedded_is_refused_in_openais_words(embedder, fields, param, said):
    answer = post(embedder, "/v1/embeddings", **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]


def test_a_text_that_is_too_long_is_not_cut_for_openais_clients(embedder):
    with pytest.raises(openai.BadRequestError) as refused:
        by_openai(embedder, lambda create: create(input=["hello", "sea " * 60]))
    assert refused.value.code == "context_length_exceeded"
    assert "maximum context length is 100 tokens" in refused.value.message
    with pytest.raises(openai.NotFoundError):
        by_openai(embedder, lambda create: create(input="hello", model="elsewhere"))


def test_ollamas_client_gets_the_same_with_length_one(embedder, expected):
    client = ollama.Client(host=embedder.url)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    answer = client.embed(embedder.model, TEXTS)
    close(answer.embeddings, unit)
    assert answer.prompt_eval_count > len(TEXTS)
    assert answer.total_duration > 1000
    close(client.embed(f"{embedder.model}:latest", TEXTS[1]).embeddings, unit[1:2])
    close(client.embeddings(embedder.model, TEXTS[0]).embedding, expected[0])
    assert client.embed(embedder.model, "").embeddings == []
    assert client.show(embedder.model).capabilities == ["embedding"]


def test_ollamas_clients_have_long_texts_cut_unless_they_say_otherwise(embedder):
    client, long = ollama.Client(host=embedder.url), "sea " * 60
    assert client.embed(embedder.model, long).prompt_eval_count == 100
    with pytest.raises(ollama.ResponseError, match="maximum context length is 100") as refused:
        client.embed(embedder.model, long, truncate=False)
    assert refused.value.status_code == 400


def test_an_encoder_generates_no_text(embedder):
    for path, fields in (
        ("/v1/chat/completions", {"messages": [user("hello")]}),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/responses", {"input": "hello"}),
        ("/v1/messages", {"messages": [user("hello")], "max_tokens": 4}),
        ("/api/generate", {"prompt": "hello"}),
    ):
        answer = post(embedder, path, **fields)
        assert answer.status_code == 400, path
        assert "generates no text" in answer.text


def test_what_is_asked_is_counted_as_answers_are(embedder):
    post(embedder, "/v1/embeddings", input=TEXTS)
    figures = httpx.get(f"{embedder.url}/metrics").text
    assert 'shoal_requests_total{path="/v1/embeddings"}' in figures
    assert f'shoal_prompt_tokens_total{{model_name="{embedder.model}"}}' in figures
    newest = embedder.gateway.records.shown()[0]
    assert (newest["state"], newest["prompt_tokens"] > 3, newest["tokens"]) == ("done", True, 0)
    assert len(newest["route"]) == 3


async def test_a_key_and_its_limits_count_and_a_decoder_gives_nothing(tmp_path, checkpoint):
    database = kept_in(tmp_path)
    key, _ = create(database, "one", KeyLimits(requests_per_minute=2), admin=False)
    async with served(tmp_path, checkpoint) as gateway:
        ask = partial(gateway.post, "/v1/embeddings", input="hello")
        assert (await ask()).status_code == 401
        headers = {"authorization": f"Bearer {key}"}
        answers = [await ask(headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [400, 400, 429]
        assert "gives no embeddings" in answers[0].json()["error"]["message"]


async def test_a_client_that_goes_away_frees_every_hop(tmp_path, bert):
    async with served(tmp_path, bert, nodes=MODULES) as gateway:
        with trio.move_on_after(0.05):
            await gateway.post("/v1/embeddings", input=TEXTS * 200)
        await gateway.idle()
        assert gateway.gateway.limits.answering == 0


def test_texts_for_which_there_is_no_session_count_for_nobody(embedder, monkeypatch):
    def tokens():
        lines = httpx.get(f"{embedder.url}/metrics").text.splitlines()
        return [line for line in lines if line.startswith("shoal_prompt_tokens_total")]

    def full(*_, **__):
        @asynccontextmanager
        async def refused(_):
            raise Busy("no room")
            yield

        return refused

    post(embedder, "/v1/embeddings", input="hello")
    before = tokens()
    assert before
    with monkeypatch.context() as patched:
        patched.setattr(embedder.gateway.swarm, "opener", full)
        assert post(embedder, "/v1/embeddings", input="hello world").status_code == 429
    assert tokens() == before
    assert post(embedder, "/v1/embeddings", input=["hello", "world"]).json()["usage"]["prompt_tokens"] > 1
    assert tokens() != before
