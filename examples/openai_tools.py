"""A function that the model calls. Even a small model calls it well: its tokens are held to the schema."""

import json

from openai import OpenAI

TIDES = {"Brest": "18:10", "Hamburg": "03:42", "Porto": "16:55"}
TOOL = {
    "type": "function",
    "function": {
        "name": "high_tide",
        "description": "The time of the next high tide in a port.",
        "parameters": {
            "type": "object",
            "properties": {"port": {"type": "string", "enum": list(TIDES)}},
            "required": ["port"],
            "additionalProperties": False,
        },
    },
}

client = OpenAI()
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "When is high tide in Hamburg?"}],
    tools=[TOOL],
    tool_choice="required",
    parallel_tool_calls=False,
    max_tokens=128,
    temperature=0,
)
for call in answer.choices[0].message.tool_calls:
    port = json.loads(call.function.arguments)["port"]
    print(f"{call.function.name}({port}): {TIDES[port]}")
