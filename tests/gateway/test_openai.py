"""OpenAI's own Python client, unchanged: synchronous, asynchronous, streaming, tools, schemas, responses."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
import trio
from pydantic import BaseModel

from .conftest import user
from .test_chat import PERSON, WEATHER


def ask(gateway, use, **options):
    """Run ``use`` with a synchronous client, on a thread of its own."""

    def run():
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, **options) as client:
            return use(client, {"model": gateway.model, "temperature": 0})

    return trio.to_thread.run_sync(run)


async def test_models_and_chat(shared):
    def use(client, base):
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id).id == shared.model
        return client.chat.completions.create(messages=[user("hello")], max_completion_tokens=6, **base)

    answer = await ask(shared, use)
    assert answer.usage.completion_tokens <= 6
    assert answer.choices[0].finish_reason in ("stop", "length")


async def test_a_stream_says_what_the_whole_answer_says(shared):
    def use(client, base):
        whole = client.chat.completions.create(messages=[user("hello")], max_tokens=8, **base)
        stream = client.chat.completions.create(messages=[user("hello")], max_tokens=8, stream=True, **base)
        return whole, "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    whole, streamed = await ask(shared, use)
    assert streamed == whole.choices[0].message.content


async def test_an_asyncio_client(shared):
    async def go():
        async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model=shared.model, messages=[user("hello")], max_tokens=5, stream=True
            )
            return [chunk async for chunk in stream]

    chunks = await trio.to_thread.run_sync(lambda: asyncio.run(go()))
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


class Person(BaseModel):
    name: str
    born: int


async def test_a_schema_made_of_a_class_is_parsed_back(shared):
    def use(client, base):
        format = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
        answer = client.chat.completions.create(
            messages=[user("who?")], max_tokens=100, response_format=format, **base
        )
        return Person.model_validate_json(answer.choices[0].message.content)

    assert (await ask(shared, use)).name in ("Ada", "Alan")


async def test_tools_are_called_and_their_results_go_back(shared):
    def use(client, base):
        messages = [user("Rome?")]
        asked = {"tools": [WEATHER], "max_tokens": 200, **base}
        first = client.chat.completions.create(
            messages=messages, tool_choice="required", parallel_tool_calls=False, **asked
        )
        (call,) = first.choices[0].message.tool_calls
        messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        return call, client.chat.completions.create(messages=messages, **(asked | {"max_tokens": 4}))

    call, second = await ask(shared, use)
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    assert second.choices[0].message.role == "assistant"


async def test_responses_whole_and_streamed(shared):
    def use(client, base):
        format = {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}
        asked = {"input": "hello", "instructions": "Be short.", "text": {"format": format}, **base}
        whole = client.responses.create(**asked)
        with client.responses.stream(**asked) as stream:
            events = list(stream)
            return whole, events, stream.get_final_response()

    whole, events, final = await ask(shared, use)
    assert whole.output_text
    assert final.output_text == whole.output_text
    assert [e.sequence_number for e in events] == sorted(e.sequence_number for e in events)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"


async def test_responses_call_functions_and_keep_to_schemas(shared):
    tool = {"type": "function", **WEATHER["function"]}

    def use(client, base):
        asked = {"max_output_tokens": 200, **base}
        called = client.responses.create(
            input="Rome?", tools=[tool], tool_choice="required", parallel_tool_calls=False, **asked
        )
        (call,) = called.output
        conversation = [
            user("Rome?"),
            call,
            {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
        ]
        client.responses.create(input=conversation, tools=[tool], **(asked | {"max_output_tokens": 4}))
        format = {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}
        shaped = client.responses.create(input="who?", text={"format": format}, **asked)
        return call, shaped

    call, shaped = await ask(shared, use)
    assert set(json.loads(call.arguments)) == {"city", "days"}
    assert Person.model_validate_json(shaped.output_text)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError),
        ({"max_tokens": -1}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
    ],
)
async def test_errors_are_the_clients_own(shared, fields, error):
    def use(client, base):
        with pytest.raises(error) as caught:
            client.chat.completions.create(**{"messages": [user("a")], **base, **fields})
        return caught.value

    body = (await ask(shared, use)).body
    assert set(body) >= {"message", "type", "param", "code"}
