"""`/v1/responses`: what its clients build on, in the words of that API."""

from __future__ import annotations

import json

import trio

from shoal.types import Span

from .conftest import served, user
from .test_chat import WEATHER

PATH = "/v1/responses"
TOOL = {"type": "function", **WEATHER["function"]}
CALL = {"type": "function_call", "call_id": "c1", "name": TOOL["name"], "arguments": '{"city": "Rome"}'}
END = 2


async def responded(gateway, **fields):
    asked = {"model": gateway.model, "input": "hello", "max_output_tokens": 8, "temperature": 0}
    answer = await gateway.http.post(PATH, json=asked | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_answer_that_is_cut_off_says_so(gateway):
    said = await responded(gateway, max_output_tokens=1, logit_bias={END: -100})
    assert (said["status"], said["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert said["output"][-1]["status"] == "incomplete"


async def test_an_answer_of_nothing_is_a_message_all_the_same(gateway):
    said = await responded(gateway, logit_bias={END: 100})
    (message,) = said["output"]
    assert (message["type"], message["content"][0]["text"]) == ("message", "")


async def test_one_function_can_be_demanded_by_name(gateway):
    named = {"type": "function", "name": TOOL["name"]}
    said = await responded(gateway, tools=[TOOL], tool_choice=named, max_output_tokens=200)
    assert [(item["type"], item["name"]) for item in said["output"]] == [("function_call", TOOL["name"])]
    asked = {"model": gateway.model, "input": "x", "tools": [TOOL], "tool_choice": named | {"name": "no"}}
    refused = await gateway.http.post(PATH, json=asked)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tool_choice"


async def test_what_was_said_and_called_in_one_turn_is_one_message_for_the_template(gateway, monkeypatch):
    seen = []
    codec = (await gateway.gateway.models.find(gateway.model)).codec
    render = codec.prompt

    def watched(messages, **options):
        seen.append(messages)
        return render(messages, **options)

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
    await responded(gateway, input=conversation)
    (messages,) = seen
    (said,) = (message["content"] for message in messages if message["role"] == "assistant")
    assert said.index("I look.") < said.index("Rome") < said.index("Oslo")


async def test_tags_of_calls_in_an_answer_by_a_schema_are_text(gateway):
    """The grammar is that of the format: nothing in the answer is read as a call."""
    format = {"type": "json_schema", "name": "p", "schema": {"const": "<tool_call> tags"}, "strict": True}
    said = await responded(gateway, tools=[TOOL], text={"format": format}, max_output_tokens=60)
    assert [item["type"] for item in said["output"]] == ["message"]
    assert json.loads(said["output"][0]["content"][0]["text"]) == "<tool_call> tags"


async def test_logprobs_come_with_the_text(gateway):
    said = await responded(gateway, include=["message.output_text.logprobs"], top_logprobs=2)
    scores = said["output"][0]["content"][0]["logprobs"]
    assert len(scores) == said["usage"]["output_tokens"]
    assert all(len(score["top_logprobs"]) == 2 for score in scores)


async def test_a_failure_mid_stream_is_one_error_event(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint, [Span(0, 3), Span(3, 6)]) as gateway:
        asked = {"model": gateway.model, "input": "go on", "stream": True, "logit_bias": {END: -100}}
        text = ""
        with trio.fail_after(40):
            async with gateway.http.stream("POST", PATH, json=asked) as answer:
                async for piece in answer.aiter_text():
                    if text.count("output_text.delta") < 5 <= (text + piece).count("output_text.delta"):
                        gateway.swarm.kill(1)
                    text += piece
        *said, last = (json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: "))
        assert (last["type"], last["code"]) == ("error", "no_coverage")
        assert "error" not in {event["type"] for event in said}
