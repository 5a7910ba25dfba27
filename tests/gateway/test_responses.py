"""`/v1/responses`: what its clients build on, in the words of that API."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import trio

from shoal.client.generate import Delta
from shoal.client.sampling import Sampling
from shoal.client.scores import TokenScore
from shoal.errors import NoCoverage
from shoal.gateway.api.responses import ResponsesForm, _messages
from shoal.gateway.errors import BadRequest
from shoal.gateway.markup.dialects import Markup
from shoal.gateway.markup.reader import AnswerSyntax
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.responses import ResponsesRequest
from shoal.types import Span

from .conftest import served, user
from .test_chat import WEATHER

PATH = "/v1/responses"
TOOL = {"type": "function", **WEATHER["function"]}
CALL = {"type": "function_call", "call_id": "c1", "name": TOOL["name"], "arguments": '{"city": "Rome"}'}
END = 2
MADE = {"id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "output"}
MADE |= {"error", "usage"}
ASKED = {"previous_response_id", "instructions", "tools", "tool_choice", "truncation", "parallel_tool_calls"}
ASKED |= {
    "text",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "temperature",
    "reasoning",
}
ASKED |= {"max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata"}
ASKED |= {"reasoning", "safety_identifier", "prompt_cache_key"}
"""With ``MADE``, what the specification of Open Responses (2026-04-24) demands of each response."""
DONE = {
    "message": ["output_text.done", "content_part.done", "output_item.done"],
    "reasoning": ["reasoning_text.done", "content_part.done", "output_item.done"],
    "function_call": ["function_call_arguments.done", "output_item.done"],
}
BEGUN = {
    "message": ["output_item.added", "content_part.added", "output_text.delta"],
    "reasoning": ["output_item.added", "content_part.added", "reasoning_text.delta"],
    "function_call": ["output_item.added", "function_call_arguments.delta"],
}


def asked_for(input="a", **fields):
    return ResponsesRequest.model_validate({"model": "m", "input": input} | fields)


def form_of(functions=None, codec=None, **fields):
    """What writes an answer down."""
    body = asked_for(**fields)
    record = Record("resp_1", "m", "local", 0.0, 0.0, prompt_tokens=7, cached_tokens=3)
    sampling = Sampling(presence_penalty=body.presence_penalty or 0.0)
    model = SimpleNamespace(id="m", codec=codec)
    asked = SimpleNamespace(model=model, syntax=AnswerSyntax(Markup(), functions), sampling=sampling)
    return ResponsesForm(record, asked, body)


def written(pieces, finish_reason="stop", functions=None, **fields):
    """What comes of an answer in pieces: the events, and the whole."""
    form, raw = form_of(functions, **fields), []
    for place, piece in enumerate(pieces):
        last = place == len(pieces) - 1
        raw += form.take(0, Delta(piece, (1,), finish_reason if last else None))
    raw += form.close()
    return [json.loads(one.split(b"data: ")[1]) for one in raw], form.whole()


def test_every_response_has_every_field_that_open_responses_demands():
    events, whole = written(["Hel", "lo"])
    *running, finished = [event["response"] for event in events if "response" in event]
    assert [one["status"] for one in running] == ["in_progress", "in_progress"]
    for response in (*running, finished, whole):
        assert response.keys() == MADE | ASKED | {"shoal"}
    assert {(one["completed_at"], one["usage"]) for one in running} == {(None, None)}
    assert finished == whole
    assert whole["completed_at"] >= whole["created_at"]


def test_an_answer_that_is_cut_off_is_never_completed():
    events, whole = written(["Hel", "lo"], finish_reason="length")
    assert events[-1]["type"] == "response.incomplete"
    assert (whole["status"], whole["completed_at"]) == ("incomplete", None)


def test_thoughts_text_and_calls_are_items_whose_events_come_in_order():
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    events, whole = written(["<think>Hm", "m.</think>", "I look. ", *call], functions={"get_weather": {}})
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [item["type"] for item in whole["output"]]
    assert kinds == ["reasoning", "message", "function_call"]
    said = [event["type"].removeprefix("response.") for event in events]
    order = [name for place, name in enumerate(said) if not place or name != said[place - 1]]
    items = [name for kind in kinds for name in (*BEGUN[kind], *DONE[kind])]
    assert order == ["created", "in_progress", *items, "completed"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == whole["output"]
    for index, item in enumerate(whole["output"]):
        assert {e["item_id"] for e in events if "item_id" in e and e["output_index"] == index} == {item["id"]}
    assert whole["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert json.loads(whole["output"][2]["arguments"]) == {"city": "Rome"}


CALL_IN_ONE = ['<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>']
CALL_IN_PIECES = [
    "\n\n",
    "<tool",
    "_call>",
    '{"name": "get_weather",',
    ' "arguments": {}}',
    "</tool",
    "_call>",
]


@pytest.mark.parametrize(
    ("before", "text", "after"),
    [
        (["<think>", "Hm", "</think>"], ["I ", "look"], CALL_IN_ONE),
        (["<think>", "Hm", "</th", "ink>", "\n\n"], ["I ", "look"], CALL_IN_PIECES),
        ([], ["", "I", "", " look\n"], CALL_IN_PIECES),  # some are a part of a character
        (["<think>", "Hm"], [".</think>I ", "loo", "k"], CALL_IN_ONE),  # what is both is the text's
        ([], ["I lo", "ok\n", "<tool", "box>"], CALL_IN_PIECES),  # looks like a call, and is text
    ],
)
def test_what_is_told_of_a_text_are_the_scores_of_its_own_tokens_as_they_come_and_at_its_end(
    before, text, after
):
    codec = SimpleNamespace(token_text=str, token_bytes=lambda token: b"")
    form, raw = form_of({"get_weather": {}}, codec), []
    answer = ["It is ", "sunny", ""]
    pieces = [*before, *text, *after, *answer]
    for place, piece in enumerate(pieces):
        reason = "stop" if place == len(pieces) - 1 else None
        raw += form.take(0, Delta(piece, (place,), reason, score=TokenScore(place, -1.0, ())))
    first = list(range(len(before), len(before) + len(text)))
    last = list(range(len(pieces) - len(answer), len(pieces)))
    whole = {i: item for i, item in enumerate(form.whole()["output"]) if item["type"] == "message"}
    assert [numbers(item["content"][0]) for item in whole.values()] == [first, last]
    events = [json.loads(one.split(b"data: ")[1]) for one in raw]
    for index, item in whole.items():
        ours = [event for event in events if event.get("output_index") == index]
        streamed = [event for event in ours if event["type"] == "response.output_text.delta"]
        assert "".join(event["delta"] for event in streamed) == item["content"][0]["text"]
        assert [number for event in streamed for number in numbers(event)] == numbers(item["content"][0])
        (done,) = [event for event in ours if event["type"] == "response.output_text.done"]
        assert numbers(done) == numbers(item["content"][0])


def numbers(told):
    """Which tokens logprobs are of."""
    return [int(score["token"]) for score in told["logprobs"]]


def test_a_failed_response_says_so_behind_the_error():
    form = form_of()
    raw = form.take(0, Delta("Hel", (1,), None)) + form.fail(NoCoverage("nobody serves blocks"))
    *_, error, last = (json.loads(one.split(b"data: ")[1]) for one in raw)
    assert (error["type"], error["code"], last["type"]) == ("error", "no_coverage", "response.failed")
    response = last["response"]
    assert (response["status"], response["usage"], response["completed_at"]) == ("failed", None, None)
    assert response["error"]["code"] == "no_coverage"
    assert response["error"]["message"] == error["message"]
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert last["sequence_number"] == error["sequence_number"] + 1


def test_what_was_asked_is_told_back():
    asked = {
        "instructions": "Be short.",
        "max_output_tokens": 9,
        "max_tool_calls": 3,
        "metadata": {"a": "b"},
        "presence_penalty": 0.5,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "u",
        "tools": [TOOL],
        "top_logprobs": 2,
    }
    _, whole = written(["a"], **asked)
    assert asked["tools"] == [{k: v for k, v in tool.items() if v is not None} for tool in whole["tools"]]
    del asked["tools"]
    assert {name: whole[name] for name in asked} == asked


def test_a_format_is_told_back_with_all_that_it_may_have():
    format = {"type": "json_schema", "name": "p", "schema": {"type": "object"}}
    _, whole = written(["{}"], text={"format": format})
    assert whole["text"]["format"] == format | {"description": None, "strict": False}
    assert written(["{}"], reasoning=None)[1]["text"]["format"] == {"type": "text"}


def thought(text, **fields):
    return {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    } | fields


def test_what_the_model_thought_goes_back_to_its_template():
    answer = {"type": "message", "role": "assistant", "content": "I look."}
    result = {"type": "function_call_output", "call_id": "c1", "output": "sun"}
    last = answer | {"content": "Sunny.", "phase": "final_answer"}
    made = _messages(
        asked_for([user("Rome?"), thought("Hm."), answer, CALL, result, thought("So."), last, user("And?")]),
        [],
    )
    called = {"name": TOOL["name"], "arguments": {"city": "Rome"}}
    assert made == [
        user("Rome?"),
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "c1", "type": "function", "function": called}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "assistant", "content": "Sunny.", "reasoning_content": "So."},
        user("And?"),
    ]


def test_a_call_may_follow_a_thought_alone_or_a_second_one():
    (alone,) = _messages(asked_for([thought("Hm."), CALL]), [])
    assert (alone["content"], alone["reasoning_content"]) == ("", "Hm.")
    (twice,) = _messages(asked_for([thought("Hm."), CALL, thought("And."), CALL | {"call_id": "c2"}]), [])
    assert (len(twice["tool_calls"]), twice["reasoning_content"]) == (2, "Hm.\n\nAnd.")


def test_a_thought_that_nothing_came_of_or_without_its_text_is_left_out():
    assert _messages(asked_for([user("a"), thought("Hm."), user("b")]), []) == [user("a"), user("b")]
    hidden = thought("", content=None, encrypted_content="x", summary=[{"type": "summary_text", "text": "s"}])
    answer = {"role": "assistant", "content": "b"}
    assert _messages(asked_for([user("a"), hidden, answer]), []) == [user("a"), answer]
    with pytest.raises(BadRequest, match="nothing that a model could answer"):
        _messages(asked_for([thought("Hm.")]), [])


async def responded(gateway, **fields):
    asked = {"model": gateway.model, "input": "hello", "max_output_tokens": 8, "temperature": 0}
    answer = await gateway.http.post(PATH, json=asked | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_answer_that_is_cut_off_says_so(shared):
    said = await responded(shared, max_output_tokens=1, logit_bias={END: -100})
    assert (said["status"], said["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert said["output"][-1]["status"] == "incomplete"


async def test_an_answer_of_nothing_is_a_message_all_the_same(shared):
    said = await responded(shared, logit_bias={END: 100})
    (message,) = said["output"]
    assert (message["type"], message["content"][0]["text"]) == ("message", "")


async def test_one_function_can_be_demanded_by_name(shared):
    named = {"type": "function", "name": TOOL["name"]}
    said = await responded(shared, tools=[TOOL], tool_choice=named, max_output_tokens=200)
    assert [(item["type"], item["name"]) for item in said["output"]] == [("function_call", TOOL["name"])]
    asked = {"model": shared.model, "input": "x", "tools": [TOOL], "tool_choice": named | {"name": "no"}}
    refused = await shared.http.post(PATH, json=asked)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tool_choice"


async def test_what_was_said_and_called_in_one_turn_is_one_message_beside_the_effort(gateway, monkeypatch):
    seen = []
    codec = (await gateway.gateway.models.find(gateway.model)).codec
    render = codec.prompt

    def watched(messages, options, pictures):
        seen.append((messages, options))
        return render(messages, options, pictures)

    monkeypatch.setattr(codec, "prompt", watched)
    conversation = [
        user("Rome?"),
        {"type": "reasoning", "id": "r1", "summary": []},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        CALL,
        CALL | {"call_id": "c2", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"type": "function_call_output", "call_id": "c2", "output": "rain"},
    ]
    await responded(gateway, input=conversation, reasoning={"effort": "low"})
    ((messages, options),) = seen
    (said,) = (message["content"] for message in messages if message["role"] == "assistant")
    assert said.index("I look.") < said.index("Rome") < said.index("Oslo")
    assert (options["reasoning_effort"], options["enable_thinking"]) == ("low", True)


async def test_logprobs_come_with_the_text(shared):
    said = await responded(shared, include=["message.output_text.logprobs"], top_logprobs=2)
    scores = said["output"][0]["content"][0]["logprobs"]
    assert len(scores) == said["usage"]["output_tokens"]
    assert all(len(score["top_logprobs"]) == 2 for score in scores)


async def test_a_failure_mid_stream_is_one_error_event(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint, [Span(0, 3), Span(3, 6)], nodes={"resume_s": 1.0}) as gateway:
        asked = {"model": gateway.model, "input": "go on", "stream": True, "logit_bias": {END: -100}}
        text = ""
        with trio.fail_after(40):
            async with gateway.http.stream("POST", PATH, json=asked) as answer:
                async for piece in answer.aiter_text():
                    if text.count("output_text.delta") < 5 <= (text + piece).count("output_text.delta"):
                        gateway.swarm.kill(1)
                    text += piece
        *said, told, last = (json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: "))
        assert (told["type"], told["code"], last["type"]) == ("error", "no_coverage", "response.failed")
        assert "error" not in {event["type"] for event in said}
