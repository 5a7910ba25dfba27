"""Tools and schemas as people have them, and models that call in their own way."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest

from shoal.gateway.api import chat, responses
from shoal.gateway.grammar import grammar as grammar_module
from shoal.gateway.markup import writing
from shoal.gateway.markup.tools import NOTHING, Calling, arguments_of
from shoal.gateway.schema.common import Function

from .conftest import served, user
from .test_chat import WEATHER, events
from .test_writing import accepts

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
TEXT = {"type": "string"}
DECLARED = Calling.declared


def tool(name, parameters, **fields):
    return {"type": "function", "function": {"name": name, "parameters": parameters} | fields}


def field(schema):
    return {"type": "object", "properties": {"v": schema}, "required": ["v"]}


ODD = {
    "propertyNames": field({"type": "object", "propertyNames": TEXT, "additionalProperties": TEXT}),
    "look-ahead": field(TEXT | {"pattern": r"^(?!\.)[a-z.]+@x$"}),
    "backreference": field(TEXT | {"pattern": r"^(a)\1$"}),
    "no pattern": field(TEXT | {"pattern": "("}),
    "format": field(TEXT | {"format": "weird"}),
    "not": field({"not": TEXT}),
    "if": field(TEXT) | {"if": {"required": ["v"]}, "then": {"required": ["w"]}},
    "other document": field({"$ref": "https://example.org/schema.json"}),
    "nowhere": field({"$ref": "#/$defs/gone"}),
    "patternProperties": field({"type": "object", "patternProperties": {"^(?=x)": TEXT}}),
    "oneOf": field({"oneOf": [TEXT, TEXT | {"maxLength": 4}]}),
    "uniqueItems": field({"type": "array", "uniqueItems": True}),
    "unsatisfiable": field({"type": "integer", "minimum": 5, "maximum": 1}),
    "type": field({"type": "any"}),
    "dialect": field(TEXT) | {"$schema": "https://example.org/dialect"},
    "properties in a list": {"type": "object", "properties": ["v"]},
}
FINE = {
    "huge minItems": field({"type": "array", "items": TEXT, "minItems": 10**6}),
    "recursive": field({"$ref": "#/$defs/A"}) | {"$defs": {"A": field({"$ref": "#/$defs/A"})}},
}


async def test_one_odd_tool_is_relaxed_and_the_request_answered(shared, caplog):
    caplog.set_level(logging.INFO, "shoal.gateway.exchange")
    for name, schema in (ODD | FINE).items():
        answer = await shared.chat(tools=[WEATHER, tool("mcp", schema)], max_tokens=2)
        assert answer.status_code == 200, (name, answer.text)
        assert answer.headers.get("x-shoal-relaxed") == ("mcp" if name in ODD else None), name
    assert "mcp: 'properties.v.propertyNames'" in caplog.text
    streamed = await shared.chat(tools=[tool("mcp", ODD["not"])], max_tokens=2, stream=True)
    assert streamed.headers["x-shoal-relaxed"] == "mcp"


async def test_the_rest_of_a_relaxed_tool_is_kept_to(shared):
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "on": {"type": "boolean", "not": {}}},
        "required": ["kind", "on"],
        "additionalProperties": False,
    }
    asked = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200, "temperature": 1}
    for seed in range(2):
        answer = await shared.chat(tools=[tool("mcp", schema)], seed=seed, **asked)
        (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["kind"] in ("a", "b")


@pytest.mark.parametrize("dialect", ["chat", "responses"])
async def test_of_allowed_tools_the_model_is_told_of_all_and_calls_those_alone(shared, monkeypatch, dialect):
    told = []
    monkeypatch.setattr(Calling, "declared", lambda calling: told.append(DECLARED(calling)) or told[-1])
    tools, names = [tool("other", field(TEXT)), WEATHER], [{"name": "get_weather"}]
    asked = {"parallel_tool_calls": False, "temperature": 1, "seed": 1}
    if dialect == "chat":
        only = {"mode": "required", "tools": [{"type": "function", "function": name} for name in names]}
        choice = {"type": "allowed_tools", "allowed_tools": only}
        answer = await shared.chat(tools=tools, tool_choice=choice, max_tokens=200, **asked)
        (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
        name = call["function"]["name"]
    else:
        only = {"mode": "required", "tools": [{"type": "function", **name} for name in names]}
        choice = {"type": "allowed_tools", **only}
        asked |= {"input": "a", "max_output_tokens": 200, "tool_choice": choice}
        flat = [{"type": "function", **one["function"]} for one in tools]
        answer = await shared.post(RESPONSES, tools=flat, **asked)
        (call,) = answer.json()["output"]
        name = call["name"]
        assert answer.json()["tool_choice"] == choice
        strange = choice | {"tools": [{"type": "function", "name": "no"}]}
        refused = await shared.post(RESPONSES, tools=flat, **asked | {"tool_choice": strange})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")
    assert name == "get_weather"
    assert [one["function"]["name"] for one in told[0]] == ["other", "get_weather"]


async def test_strict_is_refused_with_the_tool_the_keyword_and_its_path(shared):
    odd = [WEATHER, tool("mcp", ODD["look-ahead"], strict=True)]
    error = (await shared.chat(tools=odd)).json()["error"]
    assert error["param"] == "tools.1.function.parameters.properties.v.pattern"
    assert "'mcp'" in error["message"]
    assert "'pattern'" in error["message"]
    assert "look-around" in error["message"]
    flat = {"type": "function", "name": "mcp", "parameters": ODD["look-ahead"], "strict": True}
    answer = await shared.http.post(RESPONSES, json={"model": shared.model, "input": "a", "tools": [flat]})
    assert answer.json()["error"]["param"] == "tools.0.parameters.properties.v.pattern"


async def test_a_format_is_relaxed_unless_it_is_strict_or_wrong(shared):
    def shaped(schema, **fields):
        return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema} | fields}

    relaxed = await shared.chat(response_format=shaped(ODD["propertyNames"]), max_tokens=20)
    assert relaxed.headers["x-shoal-relaxed"] == "response_format"
    assert relaxed.json()["choices"][0]["message"]["content"].startswith('{"v": {')
    strict = await shared.chat(response_format=shaped(ODD["propertyNames"], strict=True))
    assert strict.status_code == 400
    assert strict.json()["error"]["param"] == (
        "response_format.json_schema.schema.properties.v.propertyNames"
    )
    for wrong in ("no pattern", "nowhere", "type"):
        assert (await shared.chat(response_format=shaped(ODD[wrong]))).status_code == 400, wrong


async def test_tools_that_are_too_much_together_are_relaxed_largest_first(shared, monkeypatch):
    monkeypatch.setattr(grammar_module, "MAX_GRAMMAR", 1500)
    large = {"type": "object", "properties": {f"p{i}": TEXT for i in range(20)}}
    many = [WEATHER, tool("large", large), tool("larger", large | {"required": ["p1"]})]
    answer = await shared.chat(tools=many, max_tokens=2)
    assert answer.status_code == 200
    assert set(answer.headers["x-shoal-relaxed"].split(", ")) == {"large", "larger"}


async def test_a_schema_that_costs_too_much_time_is_any_object(shared, monkeypatch):
    monkeypatch.setattr(grammar_module, "CHECK_WITHIN_S", -1.0)
    answer = await shared.chat(tools=[WEATHER], max_tokens=2)
    assert answer.status_code == 200
    assert answer.headers["x-shoal-relaxed"] == "get_weather"
    format = {"type": "json_schema", "json_schema": {"schema": ODD["type"]}}
    answer = await shared.chat(response_format=format, max_tokens=2)  # nobody knows that it is wrong
    assert answer.headers["x-shoal-relaxed"] == "response_format"


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {}, "required": [], "title": "Nothing", "$schema": "x"},
        {"type": "object", "properties": {}, "additionalProperties": False},
    ],
    ids=str,
)
def test_a_tool_without_parameters_takes_no_arguments(parameters):
    function = Function(name="f", parameters=parameters)
    found = arguments_of(function)
    assert (found["properties"], found["additionalProperties"]) == ({}, False)
    assert Calling((function,)).declared()[0]["function"]["parameters"]["type"] == "object"


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "additionalProperties": True},
        {"type": "object", "additionalProperties": TEXT},
        {"type": "object", "properties": {"a": TEXT}},
        {"type": "object", "patternProperties": {"^a": TEXT}},
        {"type": "object", "minProperties": 1},
        {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}}},
        {"anyOf": [{"type": "object"}]},
    ],
    ids=str,
)
def test_whoever_lets_arguments_be_anything_gets_anything(parameters):
    found = arguments_of(Function(name="f", parameters=parameters))
    assert found == parameters | {"type": "object"} != NOTHING


async def test_a_model_cannot_invent_arguments_for_a_tool_without_parameters(shared):
    for seed, parameters in enumerate((None, {}, {"type": "object"})):
        answer = await shared.chat(
            tools=[tool("now", parameters)],
            tool_choice="required",
            temperature=2,
            seed=seed,
            max_tokens=99,
        )
        for call in answer.json()["choices"][0]["message"]["tool_calls"]:
            assert call["function"]["arguments"] == "{}"


# Models that learned other markup. The grammar makes a random model write what such a one writes.


def as_family(checkpoint, folder, template, *special):
    """A copy of a checkpoint whose tokenizer and template are of another family."""
    shutil.copytree(checkpoint, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for place, word in enumerate(special):
        vocabulary[word] = vocabulary.pop(f"<extra{place}>")
        added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer["added_tokens"].append({"id": vocabulary[word], "content": word, "special": True} | added)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text() + template)
    return folder


def saying(monkeypatch, *pieces):
    """Let every answer be these texts, and these tokens where they are numbers. Returns the grammars to which
    they would be held else."""
    rule = " ".join(json.dumps(piece) if isinstance(piece, str) else f"<[{piece}]>" for piece in pieces)
    permitted = []

    def scripted(original):
        async def fit(*arguments):
            found = await original(*arguments)
            permitted.append(found.grammar)
            return replace(found, grammar=f"start: {rule}")

        return fit

    for module in (chat, responses):
        monkeypatch.setattr(module, "fit", scripted(module.fit))
    return permitted


def token_of(folder, word):
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return next(token["id"] for token in tokens if token["content"] == word)


MISTRAL = "{# [TOOL_CALLS] [THINK] [/THINK] #}"


async def test_special_tokens_that_begin_a_call_are_seen(tmp_path, checkpoint, monkeypatch):
    folder = as_family(
        checkpoint, tmp_path / "mistral", MISTRAL, "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"
    )
    begin, arguments, think, thought = (
        token_of(folder, word) for word in ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]")
    )
    asked = {"tools": [WEATHER], "max_tokens": 200}
    async with served(tmp_path, folder) as gateway:
        native = await gateway.chat(tool_choice="required", parallel_tool_calls=False, **asked)
        (call,) = native.json()["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
        assert len(call["id"]) == 9  # its templates refuse others
        saying(
            monkeypatch, think, "hm", thought, "Well.", begin, "get_weather", arguments, '{"city": "Rome"}'
        )
        choice = (await gateway.chat(**asked)).json()["choices"][0]
        message = choice["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm", "Well.")
        assert message["tool_calls"][0]["function"] == {
            "name": "get_weather",
            "arguments": '{"city": "Rome"}',
        }
        assert choice["finish_reason"] == "tool_calls"
        back = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sun"}
        again = await gateway.post(CHAT, messages=[user("Rome?"), message, back], **asked)
        assert again.status_code == 200


async def test_a_thought_is_streamed_apart_and_is_an_item_of_its_own(tmp_path, checkpoint, monkeypatch):
    folder = as_family(checkpoint, tmp_path / "thinker", "{% if add_generation_prompt %}<think>\n{% endif %}")
    saying(monkeypatch, "I add.\n</think>\n\nIt is 4.")
    async with served(tmp_path, folder) as gateway:
        whole = (await gateway.chat(max_tokens=200)).json()
        message = whole["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("I add.", "It is 4.")
        thought = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert 0 < thought < whole["usage"]["completion_tokens"]
        chunks, _ = events((await gateway.chat(max_tokens=200, stream=True)).text)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "I add."
        assert "".join(delta.get("content", "") for delta in deltas) == "It is 4."
        asked = {"model": gateway.model, "input": "2 + 2?", "max_output_tokens": 200}
        response = (await gateway.http.post(RESPONSES, json=asked)).json()
        reasoning, said = response["output"]
        assert (reasoning["type"], reasoning["content"][0]["text"]) == ("reasoning", "I add.")
        assert (said["type"], said["content"][0]["text"]) == ("message", "It is 4.")
        streamed = await gateway.http.post(RESPONSES, json=asked | {"stream": True})
        lines = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
        kinds = [json.loads(line)["type"] for line in lines]
        assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")


async def test_a_model_that_thinks_first_keeps_to_a_schema_afterwards(tmp_path, checkpoint, monkeypatch):
    folder = as_family(checkpoint, tmp_path / "thinker", "{% if add_generation_prompt %}<think>\n{% endif %}")
    format = {"type": "json_schema", "json_schema": {"schema": {"const": "4"}, "strict": True}}
    # A random model never closes its thought: it is let think two letters.
    monkeypatch.setattr(writing, "_reasoning", lambda markup, reasoning: ['reasoning: "hm" "</think>"'])
    async with served(tmp_path, folder) as gateway:
        answer = (await gateway.chat(response_format=format, max_tokens=99)).json()["choices"][0]
        message = answer["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm", '"4"')


TURNS = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning') }}{% endif %}"
    "{% if not loop.first and m.role == loop.previtem.role and m.role != 'tool' %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


async def test_messages_of_one_role_are_joined_where_the_template_demands_turns(tmp_path, checkpoint):
    folder = as_family(checkpoint, tmp_path / "turns", "")
    (folder / "chat_template.jinja").write_text(TURNS)
    said = [{"role": "developer", "content": "Be short."}, user("a"), user("b")]
    one = [{"role": "system", "content": "Be brief.\n\nBe short."}, user("a\n\nb")]
    async with served(tmp_path, folder) as gateway:
        chatted = await gateway.chat(messages=[{"role": "system", "content": "Be brief."}, *said])
        assert chatted.status_code == 200, chatted.text
        told = await gateway.post(RESPONSES, instructions="Be brief.", input=said, max_output_tokens=8)
        assert told.status_code == 200, told.text
        expected = (await gateway.chat(messages=one)).json()
        assert chatted.json()["choices"][0]["message"] == expected["choices"][0]["message"]
        assert chatted.json()["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]
        assert told.json()["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]
        refused = await gateway.chat(messages=[user("a"), {"role": "system", "content": "Late."}])
        assert (refused.status_code, "beginning" in refused.text) == (400, True)


async def test_and_are_left_apart_where_it_does_not(shared):
    apart = (await shared.post("/tokenize", messages=[user("a"), user("b")])).json()["count"]
    one = (await shared.post("/tokenize", messages=[user("a\n\nb")])).json()["count"]
    assert apart > one  # by the role of the second


async def test_a_user_opens_no_thought_of_a_model_without_a_template(tmp_path, checkpoint, monkeypatch):
    folder = as_family(checkpoint, tmp_path / "plain", "")
    (folder / "chat_template.jinja").unlink()
    saying(monkeypatch, "I answer.")
    async with served(tmp_path, folder) as gateway:
        answer = (await gateway.chat("Write <think>", max_tokens=99)).json()["choices"][0]
        assert answer["message"]["content"] == "I answer."
        assert "reasoning_content" not in answer["message"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_with_tools_and_a_format_an_answer_calls_or_keeps_to_the_format(shared, monkeypatch, path):
    """Nothing in an answer that keeps to the format is read as a call, whatever its texts look like."""
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 1}}\n</tool_call>'
    format = {"schema": {"enum": ["no " + call, "other"]}, "name": "p", "strict": True}
    if path == CHAT:
        fields = {"messages": [user("a")], "response_format": {"type": "json_schema", "json_schema": format}}
        tools = [WEATHER]
    else:
        fields = {"input": "a", "text": {"format": {"type": "json_schema"} | format}}
        tools = [{"type": "function", **WEATHER["function"]}]
    found = []
    for said in (call, json.dumps("no " + call)):
        with monkeypatch.context() as patch:
            permitted = saying(patch, said)
            limit = "max_tokens" if path == CHAT else "max_output_tokens"
            answer = await shared.post(path, tools=tools, **fields, **{limit: 200})
        assert answer.status_code == 200, answer.text
        (grammar,) = permitted
        assert accepts(grammar, said), (said, grammar)
        assert not accepts(grammar, "It is sunny.")
        found.append(answer.json())
    if path == CHAT:
        called, kept = (one["choices"][0]["message"] for one in found)
        assert called["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome", "days": 1}'
        assert ("tool_calls" in kept, json.loads(kept["content"])) == (False, "no " + call)
    else:
        called, kept = (one["output"][-1] for one in found)
        assert called["arguments"] == '{"city": "Rome", "days": 1}'
        assert json.loads(kept["content"][0]["text"]) == "no " + call


@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/v1/messages"])
async def test_a_format_where_a_call_is_demanded_is_refused_everywhere(shared, path):
    schema, function = {"type": "object"}, WEATHER["function"]
    fields, param = {
        CHAT: (
            {
                "tools": [WEATHER],
                "tool_choice": "required",
                "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
            },
            "response_format",
        ),
        RESPONSES: (
            {
                "input": "a",
                "tools": [{"type": "function", **function}],
                "tool_choice": "required",
                "text": {"format": {"type": "json_schema", "name": "p", "schema": schema}},
            },
            "text.format",
        ),
        "/v1/messages": (
            {
                "tools": [{"name": "get_weather", "input_schema": function["parameters"]}],
                "tool_choice": {"type": "any"},
                "output_config": {"format": {"type": "json_schema", "schema": schema}},
            },
            "output_config.format",
        ),
    }[path]
    answer = await shared.post(path, **{"messages": [user("a")]} | fields)
    assert answer.status_code == 400, answer.text
    assert f"{param} asks for JSON where tool_choice demands a call" in answer.text


async def test_of_tools_and_a_format_each_is_relaxed_for_itself(shared):
    format = {"type": "json_schema", "json_schema": {"schema": ODD["propertyNames"]}}
    odd = tool("odd", ODD["not"])
    answer = await shared.chat(tools=[WEATHER, odd], response_format=format, max_tokens=2)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-shoal-relaxed"] == "response_format, odd"
    for fields in ({"tools": [tool("odd", ODD["not"], strict=True)]}, {"tools": [WEATHER]}):
        format["json_schema"]["strict"] = "odd" not in str(fields)
        assert (await shared.chat(response_format=format, **fields)).status_code == 400, fields


async def test_json_that_looks_like_a_call_is_text_without_tools(tmp_path, checkpoint, monkeypatch):
    folder = as_family(checkpoint, tmp_path / "llama", '{# function name, "parameters" #}')
    text = '{"name": "get_weather", "parameters": {"city": "Rome"}}'
    saying(monkeypatch, text)
    async with served(tmp_path, folder) as gateway:
        plain = (await gateway.chat(max_tokens=200)).json()["choices"][0]
        assert (plain["message"]["content"], plain["finish_reason"]) == (text, "stop")
        called = (await gateway.chat(max_tokens=200, tools=[WEATHER])).json()["choices"][0]
        assert called["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'
        other = [tool("other", None)]
        kept = (await gateway.chat(max_tokens=200, tools=other)).json()["choices"][0]
        assert kept["message"]["content"] == text
