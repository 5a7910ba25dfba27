"""Which bodies are taken, and that a fault is told in a sentence that names its field."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from shoal.gateway.api.chat import for_templates
from shoal.gateway.body import checked
from shoal.gateway.schema.audio import AudioRequest
from shoal.gateway.schema.chat import ChatRequest
from shoal.gateway.schema.completions import CompletionRequest
from shoal.gateway.schema.embeddings import EmbeddingsRequest, EmbedRequest
from shoal.gateway.schema.messages import MessagesRequest
from shoal.gateway.schema.ollama import OllamaChatRequest
from shoal.gateway.schema.responses import ResponsesRequest
from shoal.gateway.schema.sentences import sentence
from shoal.gateway.schema.tokens import DetokenizeRequest, TokenizeRequest

from .conftest import user

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def said(**fields):
    """An assistant's turn."""
    return {"role": "assistant"} | fields


def chat(*messages, **fields):
    return {"model": "m", "messages": list(messages)} | fields


def parts(*found):
    return user(list(found))


TEXT = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        (said(content=None), ""),
        (said(), ""),
        (said(content=[]), ""),
        (said(content=""), ""),
        (said(content=[TEXT, TEXT]), "aa"),
        (said(content=None, tool_calls=[], function_call=None, audio=None, refusal=None), ""),
        (said(content=None, refusal="I will not"), "I will not"),
        (said(content=[{"type": "refusal", "refusal": "no"}]), "no"),
        (said(content="x", annotations=[], name="me"), "x"),
        ({"role": "tool", "tool_call_id": "c1", "content": [TEXT]}, "a"),
        ({"role": "tool", "tool_call_id": "c1", "content": "a", "name": "f"}, "a"),
        ({"role": "function", "name": "f", "content": "a"}, "a"),
        ({"role": "developer", "content": [TEXT], "name": "boss"}, "a"),
        ({"role": "system", "content": "a", "name": None}, "a"),
    ],
    ids=str,
)
def test_a_turn_is_taken_as_openai_takes_it(turn, text):
    (message,) = ChatRequest.model_validate(chat(turn)).messages
    made = for_templates([message])[0]
    assert made["content"] == text
    assert made["role"] in ("system", "assistant", "tool")


@pytest.mark.parametrize(
    "turn",
    [
        said(content=None, tool_calls=[CALL]),
        said(tool_calls=[CALL]),
        said(content=[], tool_calls=[CALL]),
        said(content=None, function_call=CALL["function"]),
        said(content=None, tool_calls=[CALL], function_call=None),
    ],
    ids=str,
)
def test_a_call_reaches_the_template_however_it_was_written(turn):
    (message,) = ChatRequest.model_validate(chat(turn)).messages
    (call,) = for_templates([message])[0]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": {"a": 1}}


@pytest.mark.parametrize("arguments", ["", None, "{}"])
def test_no_arguments_are_an_empty_object(arguments):
    call = CALL | {"function": {"name": "f", "arguments": arguments}}
    (message,) = ChatRequest.model_validate(chat(said(tool_calls=[call]))).messages
    assert for_templates([message])[0]["tool_calls"][0]["function"]["arguments"] == {}


def test_what_a_model_thought_is_given_back_to_its_template():
    (message,) = ChatRequest.model_validate(chat(said(content="a", reasoning_content="hm"))).messages
    assert for_templates([message])[0]["reasoning_content"] == "hm"


ALIEN = {"type": "weird"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:x"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def allowed(*names, mode="auto"):
    """The choice of some of the tools, as chat has it."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


FAULTS = [
    # What is no text.
    (chat(parts(TEXT, {"type": "image_url"})), "messages.0.content.1.image_url", "AT is missing"),
    (
        chat(said(content=[IMAGE])),
        "messages.0.content.0",
        "AT is an image, which role 'assistant' cannot show",
    ),
    (chat(parts({"type": "input_audio"})), "messages.0.content.0", "this model takes text only; AT is audio"),
    (chat(parts({"type": "file"})), "messages.0.content.0", "this model takes text only; AT is a file"),
    (chat(parts({"type": "video_url"})), "messages.0.content.0", "this model takes text only; AT is a video"),
    (chat(said(audio={"id": "a"})), "messages.0.audio", "this model takes text only; AT is audio"),
    (
        chat(parts(ALIEN)),
        "messages.0.content.0",
        "this model takes text only; AT is a part of the type 'weird'",
    ),
    # Contents and turns.
    (chat(parts({"text": "a"})), "messages.0.content.0.type", "AT is missing"),
    (chat(parts({"type": "text"})), "messages.0.content.0.text", "AT is missing"),
    (chat(parts({"type": "text", "text": 1})), "messages.0.content.0.text", "AT must be a string"),
    (chat(parts("a")), "messages.0.content.0", "AT must be an object"),
    (chat(user(5)), "messages.0.content", "AT must be a string, or a list of parts"),
    (
        chat(user(None)),
        "messages.0.content",
        "AT must be a string, or a list of parts: only an assistant's may be null",
    ),
    (chat(said(tool_calls=[ALIEN])), "messages.0.tool_calls.0.type", "AT must be 'function'"),
    (chat(), "messages", "AT must not be empty"),
    ({"model": "m"}, "messages", "AT is missing"),
    (chat(user("a"), model=1), "model", "AT must be a string"),
    # Fields.
    (chat(user("a"), temperature=-1), "temperature", "AT must be at least 0.0"),
    (chat(user("a"), temperature="hot"), "temperature", "AT must be a number"),
    (chat(user("a"), n=10**9), "n", "AT may be at most 8"),
    (chat(user("a"), n=1.5), "n", "AT must be a whole number"),
    (chat(user("a"), stream="perhaps"), "stream", "AT must be true or false"),
    (chat(user("a"), stop=[""]), "stop.0", "AT must not be empty"),
    (chat(user("a"), stop=5), "stop", "AT must be a string, or a list of strings"),
    (
        chat(user("a"), logit_bias={"a": 1}),
        "logit_bias.a",
        "AT is no name that is taken there: it must be a whole number",
    ),
    (chat(user("a"), functions=[{}]), "functions", "AT is not supported: leave it out"),
    (chat(user("a"), top_logprobs=2), "top_logprobs", "AT needs logprobs: true"),
    (
        chat(user("a"), chat_template_kwargs={"messages": 1}),
        "chat_template_kwargs",
        "AT may not set messages",
    ),
    (
        chat(user("a"), chat_template_kwargs={"x": []}),
        "chat_template_kwargs.x",
        "AT must be a string, a number, true or false",
    ),
    # Tools and formats.
    (
        chat(user("a"), tool_choice=1),
        "tool_choice",
        "AT must be 'none', 'auto', 'required', a function by name or allowed_tools",
    ),
    (chat(user("a"), tool_choice="any"), "tool_choice", "AT must be 'none', 'auto' or 'required'"),
    (chat(user("a"), tool_choice={"type": "function"}), "tool_choice.function", "AT is missing"),
    (
        chat(user("a"), tools=[TOOL], tool_choice=TOOL | {"function": {"name": "g"}}),
        "tool_choice",
        "AT demands 'g', and no such function is among the tools",
    ),
    (chat(user("a"), tool_choice="required"), "tool_choice", "AT is required, and there are no tools"),
    (
        chat(user("a"), tools=[TOOL], tool_choice=allowed("f", "g")),
        "tool_choice",
        "AT allows 'g', and no such function is among the tools",
    ),
    (
        chat(user("a"), tools=[TOOL], tool_choice=allowed()),
        "tool_choice.allowed_tools.tools",
        "AT must not be empty",
    ),
    (
        chat(user("a"), tools=[TOOL], tool_choice=allowed("f", mode="none")),
        "tool_choice.allowed_tools.mode",
        "AT must be 'auto' or 'required'",
    ),
    (chat(user("a"), tools=[TOOL, TOOL]), "tools", "AT has two functions of one name"),
    (chat(user("a"), tools=[ALIEN]), "tools.0.type", "AT must be 'function'"),
    (chat(user("a"), response_format="json"), "response_format", "AT must be an object"),
    (
        chat(user("a"), response_format={"type": "json_schema"}),
        "response_format.json_schema",
        "AT is missing",
    ),
]


def fault(schema, body):
    """How the first fault of a body is told."""
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(json.dumps(body))
    return sentence(caught.value.errors()[0])


@pytest.mark.parametrize(("body", "where", "told"), FAULTS, ids=lambda value: str(value)[:60])
def test_a_fault_of_a_chat_is_a_sentence_about_its_field(body, where, told):
    assert fault(ChatRequest, body) == (told.replace("AT", where), where)


@pytest.mark.parametrize(
    ("schema", "fields", "where", "told"),
    [
        (ResponsesRequest, {"input": 5}, "input", "AT must be a string, or a list of items"),
        (ResponsesRequest, {"input": []}, "input", "AT must not be empty"),
        (
            ResponsesRequest,
            {"input": [parts({"type": "input_image"})]},
            "input.0.content.0.image_url",
            "AT is missing",
        ),
        (ResponsesRequest, {"input": [{"type": "function_call"}]}, "input.0.call_id", "AT is missing"),
        (
            ResponsesRequest,
            {"input": [{"type": "item_reference"}]},
            "input.0",
            "AT must be an item of one of the types message, function_call, function_call_output, reasoning",
        ),
        (
            ResponsesRequest,
            {"input": [{"type": "reasoning", "content": [{"type": "text", "text": "a"}]}]},
            "input.0.content.0.type",
            "AT must be 'reasoning_text'",
        ),
        (ResponsesRequest, {"input": "a", "reasoning": "low"}, "reasoning", "AT must be an object"),
        (
            ResponsesRequest,
            {"input": "a", "tools": [{"type": "function", "name": "f"}] * 2},
            "tools",
            "AT has two functions of one name",
        ),
        (
            ResponsesRequest,
            {"input": "a", "reasoning": {"effort": "banana"}},
            "reasoning.effort",
            "AT must be 'none', 'minimal', 'low', 'medium', 'high' or 'xhigh'",
        ),
        (
            ChatRequest,
            {"messages": [user("a")], "reasoning_effort": "banana"},
            "reasoning_effort",
            "AT must be 'none', 'minimal', 'low', 'medium', 'high' or 'xhigh'",
        ),
        (
            ResponsesRequest,
            {"input": "a", "conversation": "conv_1"},
            "conversation",
            "AT is not supported: leave it out",
        ),
        (
            ResponsesRequest,
            {"input": "a", "tool_choice": {"type": "web_search"}},
            "tool_choice.type",
            "AT must be 'function'",
        ),
        (
            ResponsesRequest,
            {"input": "a", "text": {"format": {"type": "xml"}}},
            "text.format.type",
            "AT must be 'text' or 'json_object'",
        ),
        (CompletionRequest, {"prompt": ""}, "prompt", "AT must not be empty"),
        (CompletionRequest, {"prompt": [1, "a"]}, "prompt.1", "AT must be a whole number"),
        (CompletionRequest, {"prompt": [[1], []]}, "prompt.1", "AT must not be empty"),
        (
            CompletionRequest,
            {"prompt": {}},
            "prompt",
            "AT must be a string, a list of token ids, or a list of either",
        ),
        (CompletionRequest, {"prompt": "a", "best_of": 4}, "best_of", "AT may only be what n is"),
        (TokenizeRequest, {}, None, "the body must have either a prompt or messages"),
        (DetokenizeRequest, {"tokens": ["a"]}, "tokens.0", "AT must be a whole number"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_and_so_it_is_on_the_other_routes(schema, fields, where, told):
    assert fault(schema, {"model": "m"} | fields) == (told.replace("AT", where or ""), where)


ASKED = [user("a")]


@pytest.mark.parametrize(
    ("schema", "fields", "where", "told"),
    [
        (ChatRequest, {"messages": ASKED, "stream": "yes"}, "stream", "AT must be true or false"),
        (ChatRequest, {"messages": ASKED, "logprobs": 1}, "logprobs", "AT must be true or false"),
        (ChatRequest, {"messages": ASKED, "max_tokens": True}, "max_tokens", "AT must be a whole number"),
        (ChatRequest, {"messages": ASKED, "n": "2"}, "n", "AT must be a whole number"),
        (ChatRequest, {"messages": ASKED, "temperature": "0.5"}, "temperature", "AT must be a number"),
        (ChatRequest, {"messages": ASKED, "logit_bias": {"5": "1"}}, "logit_bias.5", "AT must be a number"),
        (ResponsesRequest, {"input": "a", "store": "no"}, "store", "AT must be true or false"),
        (CompletionRequest, {"prompt": [1, True]}, "prompt.1", "AT must be a whole number"),
        (EmbeddingsRequest, {"input": "a", "dimensions": "5"}, "dimensions", "AT must be a whole number"),
        (EmbedRequest, {"input": "a", "truncate": "no"}, "truncate", "AT must be true or false"),
        (
            MessagesRequest,
            {"messages": ASKED, "max_tokens": "16"},
            "max_tokens",
            "AT must be a whole number",
        ),
        (
            MessagesRequest,
            {"messages": ASKED, "max_tokens": 16, "stream": "off"},
            "stream",
            "AT must be true or false",
        ),
        (OllamaChatRequest, {"stream": "no"}, "stream", "AT must be true or false"),
        (OllamaChatRequest, {"options": {"top_k": "3"}}, "options.top_k", "AT must be a whole number"),
        (
            TokenizeRequest,
            {"prompt": "a", "add_special_tokens": 0},
            "add_special_tokens",
            "AT must be true or false",
        ),
        (DetokenizeRequest, {"tokens": ["1"]}, "tokens.0", "AT must be a whole number"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_value_of_another_type_is_refused_also_where_it_could_be_read(schema, fields, where, told):
    assert fault(schema, {"model": "m"} | fields) == (told.replace("AT", where), where)


def test_a_whole_number_is_a_number_and_names_and_forms_are_texts():
    raw = json.dumps(chat(user("a"), temperature=1, logit_bias={"5": -1}, top_p=1))
    asked = ChatRequest.model_validate_json(raw)
    assert (asked.temperature, asked.top_p, asked.logit_bias) == (1.0, 1.0, {5: -1.0})
    assert checked(AudioRequest, {"model": "m", "temperature": "0.5"}).temperature == 0.5
    cut = json.dumps({"model": "m", "options": {"top_k": 3.7, "num_predict": 5.0, "temperature": 0}})
    options = OllamaChatRequest.model_validate_json(cut).options
    assert (options.top_k, options.num_predict, options.temperature) == (3, 5, 0.0)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"model": tru}'])
def test_what_is_no_json_is_called_so(raw):
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate_json(raw)
    told, where = sentence(caught.value.errors()[0])
    assert told.startswith("the body is not JSON: ")
    assert where is None


TOO_MUCH = {"type": "object", "properties": {"v": {"anyOf": [{"maximum": float("inf")}]}}}


@pytest.mark.parametrize(
    ("schema", "fields", "where"),
    [
        (
            ChatRequest,
            {
                "messages": [user("a")],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": TOO_MUCH}}],
            },
            "tools.0.function.parameters",
        ),
        (
            ChatRequest,
            {
                "messages": [user("a")],
                "response_format": {"type": "json_schema", "json_schema": {"schema": TOO_MUCH}},
            },
            "response_format.json_schema.schema",
        ),
        (
            ResponsesRequest,
            {"input": "a", "tools": [{"type": "function", "name": "f", "parameters": TOO_MUCH}]},
            "tools.0.parameters",
        ),
        (
            ResponsesRequest,
            {"input": "a", "text": {"format": {"type": "json_schema", "schema": TOO_MUCH}}},
            "text.format.schema",
        ),
        (
            MessagesRequest,
            {"messages": [user("a")], "max_tokens": 1, "tools": [{"name": "f", "input_schema": TOO_MUCH}]},
            "tools.0.input_schema",
        ),
        (OllamaChatRequest, {"format": TOO_MUCH}, "format"),
    ],
)
def test_a_number_that_no_answer_could_repeat_is_a_fault_of_its_field(schema, fields, where):
    raw = json.dumps({"model": "m"} | fields).replace("Infinity", "1e999")
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(raw)
    assert sentence(caught.value.errors()[0]) == (f"{where} has a number that is not finite", where)


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        (
            ChatRequest,
            lambda name: {
                "messages": [user("a")],
                "tools": [{"type": "function", "function": {"name": name}}],
            },
        ),
        (
            ChatRequest,
            lambda name: {
                "messages": [user("a"), said(content=None, tool_calls=[{"function": {"name": name}}])]
            },
        ),
        (ResponsesRequest, lambda name: {"input": "a", "tools": [{"type": "function", "name": name}]}),
        (ResponsesRequest, lambda name: {"input": [{"type": "function_call", "call_id": "c", "name": name}]}),
        (
            MessagesRequest,
            lambda name: {
                "messages": [user("a")],
                "max_tokens": 1,
                "tools": [{"name": name, "input_schema": {"type": "object"}}],
                "tool_choice": {"type": "tool", "name": name},
            },
        ),
        (OllamaChatRequest, lambda name: {"tools": [{"type": "function", "function": {"name": name}}]}),
    ],
)
def test_a_name_may_be_as_long_as_anthropics_api_takes_it(schema, fields):
    schema.model_validate({"model": "m"} | fields("a" * 128))
    with pytest.raises(ValidationError, match=r"128"):
        schema.model_validate({"model": "m"} | fields("a" * 129))


async def test_over_http_the_field_is_the_errors_param(shared):
    answer = await shared.post("/v1/chat/completions", messages=[parts(TEXT, IMAGE)])
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == "messages.0.content.1"
    assert error["message"] == "this model takes text only; messages.0.content.1 is an image"
    turn = await shared.post("/v1/chat/completions", messages=[user("a"), said(content=None), user("b")])
    assert turn.status_code == 200
