"""`/v1/messages`: Anthropic's own Python client, unchanged, and what it never sends but others may."""

from __future__ import annotations

import json
from types import SimpleNamespace

import anthropic
import pytest
import trio

from shoal.client.generate import Delta
from shoal.gateway.access.keys import KeyLimits, create
from shoal.gateway.api.messages import MessagesForm, _messages
from shoal.gateway.markup.dialects import Markup
from shoal.gateway.markup.reader import AnswerSyntax
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.messages import MessagesRequest
from shoal.types import Span

from .conftest import kept_in, served, user
from .test_chat import PERSON, WEATHER

PATH = "/v1/messages"
TOOL = {
    "name": "get_weather",
    "description": WEATHER["function"]["description"],
    "input_schema": WEATHER["function"]["parameters"],
}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome", "days": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sun"}]}
GREEDY = {"extra_body": {"temperature": 0}}
"""The API has a temperature; the newest client has no argument for it."""
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


def ask(gateway, use, **options):
    """Run ``use`` with a synchronous client, on a thread of its own."""

    def run():
        options.setdefault("api_key", "none")
        with anthropic.Anthropic(base_url=gateway.url, max_retries=0, **options) as client:
            return use(client, {"model": gateway.model, "max_tokens": 8, "messages": [user("hello")]})

    return trio.to_thread.run_sync(run)


async def post(gateway, path=PATH, headers=None, **fields):
    body = {"model": gateway.model, "max_tokens": 8, "messages": [user("hello")]} | fields
    return await gateway.http.post(path, json=body, headers=headers)


async def test_an_answer_is_the_same_in_both_apis(shared):
    chat = (await shared.chat()).json()
    message = await ask(shared, lambda client, base: client.messages.create(**base, **GREEDY))
    assert [block.text for block in message.content] == [chat["choices"][0]["message"]["content"]]
    assert (message.role, message.type, message.model) == ("assistant", "message", shared.model)
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat["usage"]["prompt_tokens"]
    assert usage.output_tokens == chat["usage"]["completion_tokens"]


async def test_a_stream_says_what_the_whole_answer_says_in_events_in_their_order(shared):
    def use(client, base):
        with client.messages.stream(**base, **GREEDY) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_message()
        raw = client.messages.create(stream=True, **base, **GREEDY)
        return client.messages.create(**base, **GREEDY), streamed, kinds, [event.type for event in raw]

    whole, streamed, kinds, raw = await ask(shared, use)
    assert [block.text for block in streamed.content] == [block.text for block in whole.content]
    assert (streamed.stop_reason, streamed.usage.output_tokens) == ("max_tokens", 8)
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    order = list(dict.fromkeys(kind for kind in raw if kind != "ping"))
    blocks = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert order == ["message_start", *blocks, "message_delta", "message_stop"]


async def test_a_ping_comes_before_the_first_block(shared):
    text = (await post(shared, stream=True)).text
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert names[:3] == ["message_start", "ping", "content_block_start"]


async def test_a_tool_is_called_and_its_result_goes_back(shared):
    def use(client, base):
        asked = base | {"tools": [TOOL], "max_tokens": 200}
        messages = [user("Rome?")]
        choice = {"type": "any", "disable_parallel_tool_use": True}
        first = client.messages.create(**asked | {"messages": messages, "tool_choice": choice})
        with client.messages.stream(
            **asked | {"tool_choice": {"type": "tool", "name": TOOL["name"]}}
        ) as stream:
            pieces = [e.partial_json for e in stream if e.type == "input_json"]
            streamed = stream.get_final_message()
        (call,) = first.content
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny", "is_error": False}
        messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        second = client.messages.create(**asked | {"messages": messages, "max_tokens": 4})
        return first, streamed, pieces, second

    first, streamed, pieces, second = await ask(shared, use)
    (call,) = first.content
    assert (first.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "get_weather")
    assert call.input["city"] in ("Rome", "Oslo")
    assert json.loads("".join(pieces)) == streamed.content[0].input
    assert second.role == "assistant"


async def test_an_answer_keeps_to_a_schema(shared):
    config = {"format": {"type": "json_schema", "schema": PERSON}}
    asked = {"output_config": config, "max_tokens": 100}
    message = await ask(shared, lambda client, base: client.messages.create(**base | asked))
    assert json.loads(message.content[0].text)["name"] in ("Ada", "Alan")


async def test_a_stop_sequence_is_named_and_left_out(shared):
    config = {"format": {"type": "json_schema", "schema": PERSON}}
    asked = {"output_config": config, "max_tokens": 100, "stop_sequences": ["never", "born"]}
    message = await ask(shared, lambda client, base: client.messages.create(**base | asked))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "born")
    assert message.content[0].text.startswith('{"name"') and "born" not in message.content[0].text


async def test_tokens_are_counted_as_an_answer_counts_them(shared):
    def use(client, base):
        asked = base | {"system": [{"type": "text", "text": "Be short."}], "tools": [TOOL]}
        message = client.messages.create(**asked)
        del asked["max_tokens"]
        return client.messages.count_tokens(**asked).input_tokens, message.usage

    counted, usage = await ask(shared, use)
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


async def test_models_are_listed_in_the_words_of_who_asks(shared):
    def use(client, base):
        (model,) = client.models.list()
        return model, client.models.retrieve(model.id)

    listed, found = await ask(shared, use)
    assert listed == found
    assert (found.id, found.max_input_tokens) == (shared.model, 2048)
    assert (await shared.http.get("/v1/models")).json()["object"] == "list"


async def test_a_key_may_come_either_way_and_its_limits_hold(tmp_path, checkpoint):
    key, _ = create(kept_in(tmp_path), "laptop", KeyLimits(requests_per_minute=2), admin=False)
    async with served(tmp_path, checkpoint) as gateway:

        def use(client, base):
            return client.messages.create(**base | {"max_tokens": 1}).type

        assert await ask(gateway, use, api_key=key) == "message"
        assert await ask(gateway, use, api_key=None, auth_token=key) == "message"
        with pytest.raises(anthropic.RateLimitError) as limited:
            await ask(gateway, use, api_key=key)
        assert int(limited.value.response.headers["retry-after"]) > 0
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await ask(gateway, use, api_key="sk-wrong")
        assert refused.value.body["error"]["type"] == "authentication_error"
        assert refused.value.body["request_id"] == refused.value.request_id


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [user("")]}, "messages.0.content"),
        ({"messages": [user([IMAGE])]}, "messages.0.content.0 is an image"),
        ({"messages": [user([{"type": "document", "source": {}}])]}, "messages.0.content.0 is a file"),
        ({"messages": [user([CALL])]}, "messages.0.content.0 is a block tool_use"),
        ({"messages": [user([RESULT])]}, "tool_result for 'toolu_1'"),
        ({"messages": [user("a"), {"role": "assistant", "content": [CALL]}, user("b")]}, "messages.2 has no"),
        ({"messages": [user("a"), {"role": "assistant", "content": "I"}]}, "must end with a user's message"),
        ({"messages": [{"role": "developer", "content": "a"}]}, "messages.0.role"),
        (
            {"messages": [user([{"type": "text", "text": "a", "odd": 1}])]},
            "messages.0.content.0.odd is no field",
        ),
        ({"n": 2}, "n is no field"),
        ({"metadata": {"user": "me"}}, "metadata.user is no field"),
        ({"metadata": {"user_id": "u" * 513}}, "metadata.user_id"),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": [" "]}, "stop_sequences"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "odd"}}, "demands 'odd'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "Anthropic's servers run"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "max_tokens must be more"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1}}, "thinking.budget_tokens"),
        ({"container": "c"}, "container"),
    ],
)
async def test_what_is_wrong_is_named_in_anthropics_form(shared, fields, named):
    answer = await post(shared, **fields)
    body = answer.json()
    assert answer.status_code == 400, body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert named in body["error"]["message"]
    assert body["request_id"] == answer.headers["request-id"]


async def test_the_ends_of_every_range_can_be_answered(shared):
    for ends in ({"temperature": 0, "top_p": 0, "top_k": 0}, {"temperature": 1, "top_p": 1, "top_k": 1}):
        assert (await post(shared, max_tokens=1, **ends)).status_code == 200


async def test_a_beta_may_bring_fields_that_are_not_known(shared):
    management = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    assert (await post(shared, context_management=management)).status_code == 400
    beta = {"anthropic-beta": "context-management-2025-06-27"}
    assert (await post(shared, headers=beta, context_management=management)).status_code == 200
    assert (await post(shared, headers=beta, max_tokens="many")).status_code == 400
    unknown = await post(shared, headers={"anthropic-version": "latest"})
    assert "latest" in unknown.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
    ],
)
async def test_unknown_routes_and_methods_too(shared, method, path, status, kind):
    answer = await shared.http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)


async def test_a_model_that_there_is_not_is_not_found(shared):
    with pytest.raises(anthropic.NotFoundError):
        await ask(shared, lambda client, base: client.messages.create(**base | {"model": "claude-opus-4-6"}))


async def test_a_failure_mid_stream_is_one_error_event(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint, [Span(0, 3), Span(3, 6)], nodes={"resume_s": 1.0}) as gateway:
        asked = {
            "model": gateway.model,
            "max_tokens": 1000,
            "temperature": 0,
            "messages": [user("go on")],
            "stream": True,
        }
        text = ""
        with trio.fail_after(90):
            async with gateway.http.stream("POST", PATH, json=asked) as answer:
                async for piece in answer.aiter_text():
                    if text.count("text_delta") < 5 <= (text + piece).count("text_delta"):
                        gateway.swarm.kill(1)
                    text += piece
        last = json.loads(text.splitlines()[-2].removeprefix("data: "))
        assert (last["type"], last["error"]["type"]) == ("error", "api_error")
        assert "message_stop" not in text


def test_a_conversation_is_rendered_in_the_roles_that_templates_know():
    said = [
        {"type": "thinking", "thinking": "Where?", "signature": "s"},
        {"type": "text", "text": "I look."},
        CALL,
    ]
    failed = RESULT | {"is_error": True}
    blocks = [
        {"type": "text", "text": "x-anthropic-billing-header: cc=1"},
        {"type": "text", "text": "Be short."},
    ]
    body = MessagesRequest.model_validate(
        {
            "model": "m",
            "max_tokens": 1,
            "system": blocks,
            "messages": [
                user("Rome?"),
                user([{"type": "text", "text": "Quick.", "cache_control": {"type": "ephemeral"}}]),
                {"role": "assistant", "content": said},
                user([failed, {"type": "text", "text": "And?"}]),
            ],
        }
    )
    called = {"name": "get_weather", "arguments": CALL["input"]}
    assert _messages(body) == [
        {"role": "system", "content": "Be short."},
        user("Rome?\n\nQuick."),
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Where?",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": called}],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: sun"},
        user("And?"),
    ]


def written(pieces, finish_reason="stop", functions=None, max_tokens=100, **fields):
    """What comes of an answer in pieces: the events, and the whole."""
    body = MessagesRequest.model_validate(
        {"model": "m", "max_tokens": 100, "messages": [user("a")], **fields}
    )
    record = Record("msg_1", "m", "local", 0.0, 0.0, prompt_tokens=7, cached_tokens=3)
    syntax = AnswerSyntax(Markup(), functions)
    asked = SimpleNamespace(model=SimpleNamespace(id="m"), syntax=syntax, max_tokens=max_tokens)
    form = MessagesForm(record, asked, body)
    raw = []
    for place, piece in enumerate(pieces):
        last = place == len(pieces) - 1
        raw += form.take(0, Delta(piece, (1,), finish_reason if last else None))
    raw += form.close()
    return [json.loads(one.split(b"data: ")[1]) for one in raw], form.whole()


def test_thoughts_text_and_calls_are_blocks_of_their_own():
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    events, whole = written(["<think>Hm", "m.</think>", "I look. ", *call], functions={"get_weather"})
    kinds = [block["type"] for block in whole["content"]]
    assert kinds == ["thinking", "text", "tool_use"]
    assert whole["content"][0] == {"type": "thinking", "thinking": "Hmm.", "signature": "msg_1"}
    assert whole["content"][2]["input"] == {"city": "Rome"}
    assert whole["stop_reason"] == "tool_use"
    started = [e["index"] for e in events if e["type"] == "content_block_start"]
    stopped = [e["index"] for e in events if e["type"] == "content_block_stop"]
    assert started == stopped == [0, 1, 2]
    deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
    assert json.loads("".join(d.get("partial_json", "") for d in deltas)) == {"city": "Rome"}
    assert {"type": "signature_delta", "signature": "msg_1"} in deltas


def test_thoughts_may_be_left_out():
    thinking = {"type": "adaptive", "display": "omitted"}
    _, whole = written(["<think>Hm", "m.</think>", "So."], thinking=thinking)
    assert whole["content"][0]["thinking"] == ""
    assert whole["usage"]["output_tokens_details"]["thinking_tokens"] == 1


def test_a_call_that_is_cut_off_keeps_what_had_come():
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "da'
    _, whole = written([*call], "length", {"get_weather"})
    assert (whole["stop_reason"], whole["content"][0]["input"]) == ("max_tokens", {"city": "Rome"})


def test_who_may_not_go_on_for_as_long_as_was_asked_is_told_why():
    _, whole = written(["So"], "length", max_tokens=50)
    assert whole["stop_reason"] == "model_context_window_exceeded"


def test_what_was_in_the_cache_is_no_input():
    events, whole = written(["So."])
    assert (whole["usage"]["input_tokens"], whole["usage"]["cache_read_input_tokens"]) == (4, 3)
    assert events[-2]["usage"]["cache_read_input_tokens"] == 3
