"""Ollama's API: its own Python client, unchanged, and what it never sends but others may."""

from __future__ import annotations

import json
from types import SimpleNamespace

import ollama
import pytest
import trio

from shoal.client.generate import Delta
from shoal.errors import Busy, UnknownModel
from shoal.gateway.access.keys import KeyLimits, create
from shoal.gateway.api.ollama import OllamaForm, OllamaPiece, _for_template, _thinking
from shoal.gateway.api.ollama_models import capabilities
from shoal.gateway.api.ollama_pull import name_to_pull
from shoal.gateway.error_forms import ollama_status
from shoal.gateway.errors import BadRequest
from shoal.gateway.markup.dialects import Markup
from shoal.gateway.markup.reader import AnswerSyntax
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.ollama import OllamaChatRequest, OllamaMessage, OllamaOptions
from shoal.models.store.local_model import SamplingDefaults
from shoal.types import Span

from .conftest import kept_in, served, user
from .test_chat import PERSON, WEATHER

GREEDY = {"temperature": 0, "num_predict": 8}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def ask(gateway, use, **headers):
    """Run ``use`` with a synchronous client, on a thread of its own."""
    client = ollama.Client(host=gateway.url, headers=headers)
    return trio.to_thread.run_sync(use, client)


async def post(gateway, path="/api/chat", **fields):
    body = {"model": gateway.model, "options": GREEDY} | fields
    return await gateway.http.post(path, json=body)


async def chat(gateway, **fields):
    return await post(gateway, **{"messages": [user("hello")]} | fields)


async def test_an_answer_is_the_same_in_both_apis(shared):
    other = (await shared.chat()).json()
    messages = [user("hello")]
    answer = await ask(shared, lambda c: c.chat(shared.model, messages, options=GREEDY))
    assert answer.message.content == other["choices"][0]["message"]["content"]
    assert (answer.message.role, answer.model, answer.done) == ("assistant", shared.model, True)
    assert answer.prompt_eval_count == other["usage"]["prompt_tokens"]
    assert answer.eval_count == other["usage"]["completion_tokens"]
    assert answer.done_reason == "length"
    assert answer.total_duration == pytest.approx(answer.prompt_eval_duration + answer.eval_duration, abs=2)
    assert answer.total_duration > answer.prompt_eval_duration > 1000


async def test_a_stream_says_what_the_whole_answer_says(shared):
    def use(client):
        whole = client.chat(shared.model, [user("hello")], options=GREEDY)
        return whole, list(client.chat(shared.model, [user("hello")], options=GREEDY, stream=True))

    whole, pieces = await ask(shared, use)
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (pieces[-1].done_reason, pieces[-1].eval_count) == (whole.done_reason, whole.eval_count)


async def test_an_answer_is_streamed_as_lines_unless_it_is_asked_for_whole(shared):
    streamed = await chat(shared)
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["done"] for line in streamed.text.splitlines()][-2:] == [False, True]
    whole = await chat(shared, stream=False)
    assert whole.headers["content-type"] == "application/json"
    assert whole.json()["done"] is True


async def test_the_next_turn_finds_what_was_computed_for_the_last(shared):
    async def hits():
        text = (await shared.http.get("/metrics")).text
        found = [line for line in text.splitlines() if line.startswith("shoal_prefix_cache_hits_total{")]
        return float(found[0].split()[-1]) if found else 0.0

    messages = [user("Tell me of the sea, of its ships and of those who sail them. ")]
    said = (await chat(shared, messages=messages, stream=False)).json()["message"]
    before = await hits()
    await chat(shared, messages=[*messages, said, user("Go on.")], stream=False)
    assert await hits() - before > 16


async def test_a_prompt_alone_is_answered_as_a_conversation_of_it(shared):
    def use(client):
        messages = [{"role": "system", "content": "Be short."}, user("hello")]
        said = client.chat(shared.model, messages, options=GREEDY).message.content
        told = client.generate(shared.model, "hello", system="Be short.", options=GREEDY)
        pieces = client.generate(shared.model, "hello", system="Be short.", options=GREEDY, stream=True)
        return said, told, "".join(piece.response for piece in pieces)

    said, told, streamed = await ask(shared, use)
    assert said == told.response == streamed
    assert (told.done, told.eval_count) == (True, 8)


async def test_a_raw_prompt_is_given_to_the_model_as_it_is(shared):
    other = await shared.post("/v1/completions", prompt="once upon")
    told = await ask(shared, lambda c: c.generate(shared.model, "once upon", raw=True, options=GREEDY))
    assert told.response == other.json()["choices"][0]["text"]


async def test_an_answer_keeps_to_a_schema(shared):
    def use(client):
        options = {"num_predict": 100}
        said = client.chat(shared.model, [user("who?")], format=PERSON, options=options)
        told = client.generate(shared.model, "who?", format=PERSON, options=options)
        return said.message.content, told.response

    for text in await ask(shared, use):
        assert json.loads(text)["name"] in ("Ada", "Alan")
    assert (await chat(shared, format="json", stream=False)).json()["message"]["content"].startswith("{")


async def test_a_schema_that_cannot_be_kept_to_is_relaxed_and_named(shared):
    odd = PERSON | {"propertyNames": {"not": {"const": "age"}}}
    answer = await chat(shared, format=odd, stream=False)
    assert (answer.status_code, answer.headers["x-shoal-relaxed"]) == (200, "format")


async def test_a_stop_string_is_left_out(shared):
    options = {"num_predict": 100, "stop": ["never", "born"]}
    answer = (await chat(shared, format=PERSON, options=options, stream=False)).json()
    assert answer["done_reason"] == "stop"
    assert "born" not in answer["message"]["content"]


async def test_a_function_of_the_client_is_a_tool(shared):
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return city

    def use(client):
        call = {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
        messages = [
            user("Rome?"),
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
        ]
        return client.chat(shared.model, messages, tools=[get_weather], options=GREEDY)

    assert (await ask(shared, use)).message.role == "assistant"


async def test_scores_come_with_their_tokens(shared):
    def use(client):
        return client.chat(shared.model, [user("hello")], options=GREEDY, logprobs=True, top_logprobs=2)

    scores = (await ask(shared, use)).logprobs
    assert len(scores) == 8
    assert all(len(score.top_logprobs) == 2 and score.logprob <= 0 for score in scores)


async def test_models_are_listed_shown_and_found_with_or_without_latest(shared):
    def use(client):
        chosen = client.chat(f"{shared.model}:latest", [user("hello")], options=GREEDY)
        return client.list().models, client.ps().models, client.show(f"{shared.model}:latest"), chosen

    (listed,), (running,), shown, chosen = await ask(shared, use)
    assert listed.model == running.model == shared.model
    assert listed.details.family == shown.details.family == "llama"
    assert listed.size > 0 and len(listed.digest) == 64
    assert running.context_length == shown.modelinfo["llama.context_length"] == 2048
    assert shown.capabilities[:2] == ["completion", "tools"]
    assert chosen.model == f"{shared.model}:latest"


@pytest.mark.parametrize(("full", "empty"), [("model", "name"), ("name", "model")])
async def test_of_two_names_one_may_be_empty_as_ollamas_own_client_sends_it(shared, full, empty):
    answer = await shared.http.post("/api/show", json={full: shared.model, empty: "", "system": ""})
    assert answer.status_code == 200, answer.text
    assert answer.json()["details"]["family"] == "llama"


async def test_the_version_is_one_that_clients_accept(shared):
    version = (await shared.http.get("/api/version")).json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 12, 11)
    assert (await shared.http.head("/")).status_code == 200


@pytest.mark.parametrize(("keep_alive", "reason"), [("5m", "load"), (None, "load"), (0, "unload")])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_request_without_a_prompt_loads_a_model_or_lets_it_go(shared, path, keep_alive, reason):
    answer = await post(shared, path, keep_alive=keep_alive)
    assert (answer.json()["done"], answer.json()["done_reason"]) == (True, reason)


async def test_a_model_that_there_is_not_is_not_found(shared):
    for use in (
        lambda c: c.chat("llama9:latest", [user("hello")]),
        lambda c: c.generate("llama9", "hello"),
        lambda c: c.show("llama9"),
    ):
        with pytest.raises(ollama.ResponseError) as missing:
            await ask(shared, use)
        assert missing.value.status_code == 404
        assert "llama9" in missing.value.error


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/api/chat", {"model": ""}, "model must not be empty"),
        ("/api/chat", {"messages": "hello"}, "messages must be a list"),
        ("/api/chat", {"messages": [user("a") | {"images": ["aGk="]}]}, "messages.0.images.0 is an image"),
        ("/api/chat", {"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ("/api/chat", {"messages": [user("a"), {"role": "assistant", "content": "I"}]}, "may not end with"),
        ("/api/chat", {"messages": [user("a")], "tools": [WEATHER, WEATHER]}, "two functions of one name"),
        ("/api/chat", {"messages": [user("a")], "format": "xml"}, "format must be"),
        ("/api/chat", {"messages": [user("a")], "format": 7}, "format must be"),
        ("/api/chat", {"messages": [user("a")], "format": {"type": "odd"}}, "format"),
        ("/api/chat", {"messages": [user("a")], "think": "hard"}, "think must be"),
        ("/api/chat", {"messages": [user("a")], "options": {"num_predict": "many"}}, "options.num_predict"),
        ("/api/chat", {"messages": [user("a")], "options": {"stop": "a"}}, "options.stop must be a list"),
        ("/api/chat", {"messages": [user("a")], "options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
        ("/api/chat", {"messages": [user("a")], "options": []}, "options must be an object"),
        ("/api/chat", {"messages": [user("a")], "keep_alive": "soon"}, "keep_alive"),
        ("/api/generate", {"prompt": "a", "images": ["aGk="]}, "images.0 is an image"),
        ("/api/generate", {"prompt": "a", "context": [1, 2]}, "context is not supported"),
        ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template is not supported"),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, "suffix is not supported"),
        ("/api/generate", {"prompt": "word " * 3000}, "maximum context length"),
        ("/api/show", {"model": None}, "model is missing"),
        ("/api/show", {"model": "", "name": ""}, "model is missing"),
    ],
)
async def test_what_is_wrong_is_named_in_ollamas_form(shared, path, fields, named):
    answer = await post(shared, path, **fields)
    body = answer.json()
    assert answer.status_code == 400, body
    assert list(body) == ["error"]
    assert named in body["error"]


async def test_what_says_nothing_and_what_is_not_known_is_ignored(shared):
    options = GREEDY | {"num_ctx": 4096, "mirostat": 1, "seed": -1, "top_k": None, "odd": {}}
    nothing = {"format": "", "tools": None, "think": None, "template": "", "context": [], "odd": 1}
    assert (await chat(shared, options=options, keep_alive="-1m", **nothing)).status_code == 200
    whole = await post(shared, "/api/generate", prompt="a", images=[], suffix="", stream=False, **nothing)
    assert whole.json()["eval_count"] == 8


@pytest.mark.parametrize(
    ("method", "path", "status", "named"),
    [
        ("GET", "/api/chat", 405, "it takes POST"),
        ("GET", "/api/pull", 405, "it takes POST"),
        ("DELETE", "/api/delete", 404, "shoal models rm"),
    ],
)
async def test_unknown_routes_and_methods_too(shared, method, path, status, named):
    answer = await shared.http.request(method, path)
    assert answer.status_code == status
    assert named in answer.json()["error"]


async def test_the_pages_own_routes_keep_their_words(shared):
    assert (await shared.http.post("/api/swarm")).json()["error"]["type"] == "invalid_request_error"
    assert (await shared.http.get("/api/odd")).json()["error"]["code"] == "not_found"


async def test_keys_and_their_limits_hold(tmp_path, checkpoint):
    key, _ = create(kept_in(tmp_path), "laptop", KeyLimits(requests_per_minute=1), admin=False)
    async with served(tmp_path, checkpoint) as gateway:

        def use(client):
            return client.chat(gateway.model, [user("hello")], options={"num_predict": 1}).done

        assert await ask(gateway, use, Authorization=f"Bearer {key}")
        with pytest.raises(ollama.ResponseError) as limited:
            await ask(gateway, use, Authorization=f"Bearer {key}")
        assert limited.value.status_code == 429
        with pytest.raises(ollama.ResponseError) as refused:
            await ask(gateway, use)
        assert refused.value.status_code == 401


async def test_a_failure_mid_stream_is_the_last_line(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint, [Span(0, 3), Span(3, 6)], nodes={"resume_s": 1.0}) as gateway:
        asked = {"model": gateway.model, "messages": [user("go on")], "options": {"num_predict": 1000}}
        lines = []
        with trio.fail_after(40):
            async with gateway.http.stream("POST", "/api/chat", json=asked) as answer:
                async for line in answer.aiter_lines():
                    lines.append(json.loads(line))
                    if len(lines) == 5:
                        gateway.swarm.kill(1)
        assert list(lines[-1]) == ["error"]
        assert not any(line.get("done") for line in lines)


def test_full_nodes_are_told_in_ollamas_status():
    assert ollama_status(Busy("full", retry_after_s=1)) == 503


def test_options_are_those_of_the_sampler():
    options = {
        "temperature": -1,
        "top_p": 0,
        "top_k": -1,
        "min_p": 2,
        "seed": 7.9,
        "num_predict": 5.0,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
    }
    read = OllamaOptions.model_validate(options)
    sampling = read.sampling(None, SamplingDefaults(temperature=0.2))
    assert (sampling.temperature, sampling.top_k, sampling.min_p, sampling.seed) == (0, 0, 1, 7)
    assert 0 < sampling.top_p < 1e-6
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (
        1.1,
        0.5,
        -0.5,
    )
    assert read.limit == 5


@pytest.mark.parametrize(
    ("said", "limit"), [(None, None), (-1, None), (0, None), (-2, 1 << 20), (1 << 40, 1 << 20)]
)
def test_an_answer_may_become_as_long_as_is_said(said, limit):
    assert OllamaOptions(num_predict=said).limit == limit


def test_where_nothing_is_said_the_models_own_sampling_holds():
    sampling = OllamaOptions(seed=-1).sampling(None, SamplingDefaults(temperature=0.2, top_p=0.9))
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.2, 0.9, None)


def test_a_conversation_is_rendered_in_the_words_that_templates_know():
    call = {"function": {"index": 0, "name": "get_weather", "arguments": {"city": "Rome"}}}
    said = {"role": "Assistant", "thinking": "Where?", "tool_calls": [call]}
    result = {"role": "tool", "tool_name": "get_weather", "content": "sun"}
    called = {"name": "get_weather", "arguments": {"city": "Rome"}}
    assert [
        _for_template(OllamaMessage.model_validate(one), "") for one in (user("Rome?"), said, result)
    ] == [
        user("Rome?"),
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Where?",
            "tool_calls": [{"id": "", "type": "function", "function": called}],
        },
        {"role": "tool", "content": "sun", "name": "get_weather"},
    ]


@pytest.mark.parametrize(
    ("think", "effort"), [(True, "medium"), ("high", "high"), ("max", "high"), (False, "none"), (None, None)]
)
def test_a_model_is_asked_to_think_in_its_templates_words(think, effort):
    model = SimpleNamespace(
        hears=False, looking=None, codec=SimpleNamespace(template="{% if enable_thinking %}")
    )
    options = _thinking(OllamaChatRequest(model="m", think=think), model)
    assert options.get("reasoning_effort") == effort
    assert capabilities(model) == ["completion", "tools", "thinking"]


def test_a_model_that_cannot_think_is_not_asked_to():
    model = SimpleNamespace(hears=False, looking=None, codec=SimpleNamespace(template="{{ messages }}"))
    assert _thinking(OllamaChatRequest(model="m", think=False), model)["enable_thinking"] is False
    with pytest.raises(BadRequest, match="does not support thinking"):
        _thinking(OllamaChatRequest(model="m", think=True), model)


def written(pieces, finish_reason="stop", functions=None, wording=OllamaPiece.as_message):
    """What comes of an answer in pieces: the lines, and the whole."""
    record = Record("ollama-1", "m", "local", trio.current_time(), 0.0, prompt_tokens=7)
    asked = SimpleNamespace(model=SimpleNamespace(codec=None), syntax=AnswerSyntax(Markup(), functions))
    form = OllamaForm(record, asked, "m", wording)
    raw = []
    for place, piece in enumerate(pieces):
        last = place == len(pieces) - 1
        raw += form.take(0, Delta(piece, (1,), finish_reason if last else None))
    raw += form.close()
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in raw)
    return [json.loads(line) for line in raw], form.whole()


async def test_thoughts_text_and_calls_are_told_apart():
    lines, whole = written(
        ["<think>Hm", "m.</think>", "I look. ", *CALL, *CALL], functions={"get_weather": {}}
    )
    said = whole["message"]
    assert (said["thinking"], said["content"].strip()) == ("Hmm.", "I look.")
    assert [call["function"]["arguments"] for call in said["tool_calls"]] == [{"city": "Rome"}] * 2
    assert [call["function"]["index"] for call in said["tool_calls"]] == [0, 1]
    streamed = [line["message"] for line in lines]
    assert "".join(one.get("thinking", "") for one in streamed) == said["thinking"]
    assert "".join(one["content"] for one in streamed) == said["content"]
    assert [call for one in streamed for call in one.get("tool_calls", [])] == said["tool_calls"]
    assert (lines[-1]["done_reason"], whole["done_reason"]) == ("stop", "stop")


async def test_thoughts_stand_beside_the_response_too():
    lines, whole = written(["<think>Hmm.</think>", "So."], wording=OllamaPiece.as_response)
    assert (whole["thinking"], whole["response"]) == ("Hmm.", "So.")
    assert lines[0]["thinking"] == "Hmm." and lines[-1]["response"] == ""


async def test_a_call_that_is_cut_off_keeps_what_had_come():
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "da'
    _, whole = written([*call], "length", {"get_weather": {}})
    (call,) = whole["message"]["tool_calls"]
    assert (whole["done_reason"], call["function"]["arguments"]) == ("length", {"city": "Rome"})


async def pulled(gateway, use, monkeypatch):
    """What Ollama's client gets while the swarm resolves a model as ``use`` does."""
    monkeypatch.setattr("shoal.gateway.api.ollama_pull.LINE_EVERY_S", 0.01)
    asked = []
    with trio.fail_after(10):
        while not gateway.gateway.swarm.rings.ends:  # noqa: ASYNC110 - what it has ready is resolved, too
            await trio.sleep(0.01)

    async def resolve(name, progress):
        asked.append(name)
        await use(progress)

    monkeypatch.setattr(gateway.gateway.swarm, "resolve", resolve)
    return asked


async def test_a_pull_tells_how_far_it_is(gateway, monkeypatch):
    async def use(progress):
        await trio.sleep(0.05)
        for done in (10, 20):
            progress("pulling model.safetensors", done, 20)
            await trio.sleep(0.05)

    asked = await pulled(gateway, use, monkeypatch)
    lines = await ask(gateway, lambda client: list(client.pull("hf.co/owner/name:latest", stream=True)))
    told = [(one.status, one.completed, one.total) for one in lines]
    assert told == [
        ("pulling manifest", None, None),
        ("pulling model.safetensors", 10, 20),
        ("pulling model.safetensors", 20, 20),
        ("success", None, None),
    ]
    assert (await ask(gateway, lambda client: client.pull("smollm2"))).status == "success"
    assert asked == ["owner/name", "smollm2"]


async def test_a_model_that_is_here_is_pulled_at_once(gateway):
    name = gateway.model
    assert (await ask(gateway, lambda client: list(client.pull(name, stream=True))))[-1].status == "success"


async def test_a_pull_that_fails_says_so_in_either_form(gateway, monkeypatch):
    async def use(progress):
        await trio.sleep(0.03)
        raise UnknownModel("the hub has no owner/name")

    await pulled(gateway, use, monkeypatch)
    for stream in (True, False):
        with pytest.raises(ollama.ResponseError, match="the hub has no owner/name"):
            await ask(gateway, lambda client, stream=stream: list(client.pull("owner/name", stream=stream)))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "no-such-model", "owner/name:q4", "~/x", "a/../../b"]
)
async def test_a_name_that_is_pulled_never_becomes_a_path(shared, name):
    answer = await shared.http.post("/api/pull", json={"model": name})
    assert (answer.status_code, "can be pulled" in answer.json()["error"]) == (404, True)


def test_what_a_peer_calls_its_model_never_becomes_a_path_either(tmp_path):
    assert name_to_pull("theirs", ["theirs"]) == "theirs"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnknownModel):
        name_to_pull(str(tmp_path), [str(tmp_path)])


async def test_a_folder_here_that_is_called_like_a_model_of_the_hub_is_not_taken(
    shared, tmp_path, monkeypatch
):
    (tmp_path / "owner/name").mkdir(parents=True)
    (tmp_path / "owner/name/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert (await shared.http.post("/api/pull", json={"model": "owner/name"})).status_code == 404


async def test_only_an_administrator_may_pull(gateway):
    path = gateway.gateway.database
    guest, _ = create(path, "guest", KeyLimits(), admin=False)
    gateway.gateway.keys.refresh()
    headers = {"authorization": f"Bearer {guest}"}
    answer = await gateway.http.post("/api/pull", json={"model": "smollm2"}, headers=headers)
    assert (answer.status_code, "--admin" in answer.json()["error"]) == (403, True)
