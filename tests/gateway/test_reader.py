"""How an answer is parted into reasoning, text and calls, in the markup of each family of models."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from types import SimpleNamespace

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gateway.markup.argument_types import typed, types_of
from shoal.gateway.markup.arguments import arguments_object
from shoal.gateway.markup.dialects import (
    DEEPSEEK,
    DEEPSEEK_R1,
    GLM,
    GPT_OSS,
    GRANITE,
    HERMES,
    KIMI,
    LLAMA,
    MISTRAL,
    PYTHONIC,
    QWEN_CODER,
    REASONING,
    UNKNOWN,
    Markup,
    markup_of,
)
from shoal.gateway.markup.events import ArgumentsDelta, CallStart, Reasoning
from shoal.gateway.markup.reader import AnswerSyntax
from shoal.gateway.markup.reasoning import reasoning_options

FIELDS = {"a": {"type": "integer"}, "s": {"type": "string"}, "n": {"type": ["string", "null"]}}
FUNCTIONS = {"f": {"type": "object", "properties": FIELDS}, "get_weather": {}}
ONE = [("f", {"a": 1})]


def read(text, dialect=HERMES, *, step=1, functions=FUNCTIONS, thought=REASONING[0], reasoning=False):
    """The thought, the text and the calls of an answer that came in pieces of ``step`` letters."""
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    return merged(pieces, dialect, functions, thought, reasoning)


def merged(pieces, dialect, functions=FUNCTIONS, thought=REASONING[0], reasoning=False):
    reader = AnswerSyntax(Markup(dialect, thought), functions, reasoning=reasoning).reader()
    said = [one for piece in pieces for one in reader.push(piece)] + reader.finish()
    names = [one.name for one in said if isinstance(one, CallStart)]
    arguments = [
        "".join(one.text for one in said if isinstance(one, ArgumentsDelta) and one.index == i)
        for i in range(len(names))
    ]
    thoughts = "".join(one.text for one in said if isinstance(one, Reasoning))
    return (
        thoughts,
        "".join(one for one in said if isinstance(one, str)),
        list(zip(names, arguments, strict=True)),
    )


def calls_of(text, dialect):
    """The text and the calls, the same in whatever pieces they come."""
    found = [read(text, dialect, step=step) for step in (1, 3, 7, 10_000)]
    assert all(one == found[0] for one in found)
    _, said, calls = found[0]
    return said, [(name, json.loads(arguments)) for name, arguments in calls]


NATIVE = [
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ONE),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', ONE),
    (HERMES, '<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call>', ONE),
    (
        HERMES,
        '<tool_call>\n{"name": "f", "arguments": {"a": "}<"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
        [("f", {"a": "}<"}), ("g", {})],
    ),
    (
        HERMES,
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx y\n</parameter>\n"
        "</function>\n</tool_call>",
        [("f", {"a": 1, "b": "x y"})],
    ),
    (HERMES, "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", ONE),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', ONE),
    (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "get_weather", "arguments": {}}]',
        [*ONE, ("get_weather", {})],
    ),
    (
        MISTRAL,
        '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get_weather[CALL_ID]abc123xyz[ARGS]{}',
        [*ONE, ("get_weather", {})],
    ),
    (MISTRAL, '[TOOL_CALLS]f{"a": 1}', ONE),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', ONE),
    (LLAMA, '{"type": "function", "name": "f", "parameters": {"a": 1}}', ONE),
    (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', ONE),
    (
        LLAMA,
        '{"name": "f", "parameters": {"a": 1}}; {"name": "f", "parameters": {"a": 2}}',
        [*ONE, ("f", {"a": 2})],
    ),
    (
        DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
        '{"a": 1}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{}\n"
        "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [*ONE, ("get_weather", {})],
    ),
    (
        DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"
        '{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ONE,
    ),
    (
        KIMI,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"a": 1}<|tool_call_end|><|tool_calls_section_end|>',
        ONE,
    ),
    (GRANITE, '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>', ONE),
    (
        GPT_OSS,
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
        ONE,
    ),
    (GPT_OSS, '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>', ONE),
    (
        GPT_OSS,
        "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>commentary to=functions.f"
        "<|message|><|call|>",
        [("f", {})],
    ),
    (
        QWEN_CODER,
        '<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\n\nx <b> "\n\n'
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n</function>\n"
        "</tool_call>",
        [("f", {"a": 1, "s": '\nx <b> "\n'}), ("get_weather", {})],
    ),
    (
        QWEN_CODER,
        "<function=f>\n<parameter=s>\n1\n</parameter>\n</function>\n</tool_call>",
        [("f", {"s": "1"})],
    ),
    (QWEN_CODER, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ONE),
    (
        GLM,
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>s</arg_key>\n"
        "<arg_value>true</arg_value>\n<arg_key>n</arg_key><arg_value>None</arg_value>\n</tool_call>\n"
        "<tool_call>get_weather\n</tool_call>",
        [("f", {"a": 1, "s": "true", "n": None}), ("get_weather", {})],
    ),
    (
        PYTHONIC,
        "[f(a=-1, s='it\\'s [x], f(y)', b=[True, {\"k\": None}]), get_weather()]",
        [("f", {"a": -1, "s": "it's [x], f(y)", "b": [True, {"k": None}]}), ("get_weather", {})],
    ),
    (PYTHONIC, "<|python_start|>[f(a=1)]<|python_end|>", ONE),
    (PYTHONIC, '{"name": "f", "parameters": {"a": 1}}', ONE),
    (PYTHONIC, "[f(a=g(1))]", [("f", {"arguments": "a=g(1)"})]),
    (UNKNOWN, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', ONE),
    (UNKNOWN, '{"name": "f", "arguments": {"a": 1}}', ONE),
]


@pytest.mark.parametrize(("dialect", "text", "calls"), NATIVE, ids=lambda value: str(value)[:50])
def test_a_call_is_read_in_the_dialect_of_its_model(dialect, text, calls):
    assert calls_of(text, dialect) == ("", calls)
    if not dialect.bare:
        assert calls_of(f"Let me see.\n{text}", dialect) == ("Let me see.", calls)


@settings(max_examples=300, deadline=None)
@given(native=st.sampled_from(NATIVE), cuts=st.lists(st.integers(0, 400), max_size=40))
def test_however_an_answer_is_cut_it_comes_to_the_same(native, cuts):
    dialect, text, calls = native
    places = [0, *sorted({cut for cut in cuts if cut < len(text)}), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    _, said, found = merged(pieces, dialect)
    assert (said, [(name, json.loads(arguments)) for name, arguments in found]) == ("", calls)


@settings(max_examples=200, deadline=None)
@given(value=st.text(max_size=30), step=st.integers(1, 40))
def test_a_text_in_tags_is_any_text(value, step):
    for dialect, text in (
        (
            QWEN_CODER,
            f"<tool_call>\n<function=f>\n<parameter=s>\n{value}\n</parameter>\n</function>\n</tool_call>",
        ),
        (GLM, f"<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"),
    ):
        _, said, ((_, arguments),) = read(text, dialect, step=step)
        assert (said, json.loads(arguments)) == ("", {"s": value})


def test_a_text_in_tags_is_streamed_as_it_comes():
    reader = AnswerSyntax(Markup(QWEN_CODER), FUNCTIONS).reader()
    reader.push("<tool_call>\n<function=f>\n<parameter=s>\n")
    assert reader.push("one\n") == [ArgumentsDelta(0, "one")]
    assert reader.push('"two"') == [ArgumentsDelta(0, '\\n\\"two\\"')]


@pytest.mark.parametrize(
    ("cut", "arguments"),
    [
        ("<parameter=s>\n/home", '{"s": "/home'),
        ("<parameter=a>\n1", '{"a": '),
        ("<parameter=a>\n1\n</parameter>\n", '{"a": 1}'),
        ("", "{}"),
    ],
)
def test_a_value_that_was_cut_off_is_no_value(cut, arguments):
    _, _, ((_, found),) = read(f"<tool_call>\n<function=f>\n{cut}", QWEN_CODER)
    assert found == arguments


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "integer"}, "5.0", 5),
        ({"type": "number"}, " 5\n", 5),
        ({"type": "boolean"}, "True", True),
        ({"type": "array"}, '["a"]', ["a"]),
        ({"type": "object"}, '{"a": NaN}', '{"a": NaN}'),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "5", "5"),
        ({"$ref": "#/$defs/T"}, "5", "5"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"const": 1}, "1", 1),
        ({"type": "integer"}, "five", "five"),
        ({}, "5", 5),
        (None, "five", "five"),
    ],
)
def test_a_schema_tells_what_type_a_value_in_tags_has(schema, text, value):
    root = {"$defs": {"T": {"type": "string"}}}
    assert typed(text, types_of(schema, root)) == value


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        (HERMES, "A <tool_call> tag is written so: <tool_call>x y</tool_call>, and so on"),
        (HERMES, '\n\n<tool_call> {"a": 1} </tool_call>\n'),
        (HERMES, '<tool_call>\n{"name": "f", "argu'),
        (HERMES, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]'),
        (HERMES, '{"name": "f", "parameters": {"a": 1}}'),
        (MISTRAL, "[TOOL_CALLS] is how Mistral begins"),
        (MISTRAL, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'),
        (LLAMA, "<|python_tag|>print(1)"),
        (PYTHONIC, "[f, g]"),
        (PYTHONIC, "[1, 2]"),
        (PYTHONIC, "so: [f(a=1)]"),
        (QWEN_CODER, "Write <function=name> for a call, or <tool_call>x</tool_call>"),
        (HERMES, "<tool_call>x</tool_call>"),
        (LLAMA, '{"name": "Ada", "born": 1815}'),
        (LLAMA, '{"name": "f", "born": 1815}'),
        (LLAMA, '{"name": "g", "parameters": {}}'),
        (LLAMA, 'so: {"name": "f", "parameters": {}}'),
        (UNKNOWN, '<tool_call>{"name": "g", "arguments": {}}</tool_call>'),
        (UNKNOWN, '{"a": 1}'),
        (UNKNOWN, "{"),
        (UNKNOWN, "[TOOL"),
    ],
    ids=str,
)
def test_what_only_looks_like_a_call_stays_text_to_the_letter(dialect, text):
    assert calls_of(text, dialect) == (text, [])


BARRED = [
    (HERMES, '<tool_call>\n{"name": "barred", "arguments": {"a": 1}}\n</tool_call>'),
    (QWEN_CODER, "<tool_call>\n<function=barred>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"),
    (MISTRAL, '[TOOL_CALLS][{"name": "barred", "arguments": {"a": 1}}]'),
    (MISTRAL, '[TOOL_CALLS]barred[ARGS]{"a": 1}'),
    (
        DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>barred<｜tool▁sep｜>"
        '{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ),
    (GPT_OSS, '<|channel|>commentary to=functions.barred <|constrain|>json<|message|>{"a": 1}<|call|>'),
]


@pytest.mark.parametrize(("dialect", "text"), BARRED)
@pytest.mark.parametrize("step", [1, 1000])
def test_a_call_of_what_may_not_be_called_stays_text(dialect, text, step):
    syntax = AnswerSyntax(Markup(dialect), FUNCTIONS, frozenset({"barred"}))
    reader = syntax.reader()
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    said = [*(one for piece in pieces for one in reader.push(piece)), *reader.finish()]
    assert all(isinstance(one, str) for one in said)
    assert said


@pytest.mark.parametrize(("dialect", "text", "calls"), NATIVE, ids=lambda value: str(value)[:50])
def test_without_tools_nothing_is_a_call(dialect, text, calls):
    _, said, found = read(text, dialect, functions=None)
    assert found == []
    assert dialect is GPT_OSS or said == text


def pushed(text, dialect=LLAMA):
    """What has been said after each letter."""
    reader = AnswerSyntax(Markup(dialect), FUNCTIONS).reader()
    said = ""
    for letter in text:
        said += "".join(one for one in reader.push(letter) if isinstance(one, str))
        yield said


def test_held_text_is_let_go_as_soon_as_it_can_be_no_call():
    *before, last = pushed('{"name": "A')
    assert set(before) == {""}
    assert last == '{"name": "A'
    assert list(pushed("a < b", HERMES)) == ["a", "a ", "a ", "a < ", "a < b"]
    assert list(pushed("<tool_call> x ", HERMES))[-3:] == ["", "<tool_call> x", "<tool_call> x "]


def test_arguments_are_streamed_as_they_come():
    reader = AnswerSyntax(Markup(MISTRAL), FUNCTIONS).reader()
    assert [type(one) for one in reader.push('[TOOL_CALLS][{"name": "f", "arguments": {"a"')] == [
        CallStart,
        ArgumentsDelta,
    ]
    assert reader.push(": 1") == [ArgumentsDelta(0, ": 1")]


@pytest.mark.parametrize("step", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "thinking", "thought", "answer"),
    [
        ("<think>hm</think>Yes", False, "hm", "Yes"),
        ("\n<think>\nhm\n\nhm\n</think>\n\nYes <think> no", False, "hm\n\nhm", "Yes <think> no"),
        ("hm\n</think>\n\nYes", True, "hm", "Yes"),
        ("<think>\nhm\n</think>\n\nYes", True, "hm", "Yes"),
        ("hm, and never an end ", True, "hm, and never an end", ""),
        ("<think>hm", False, "hm", ""),
        ("<thin ice", False, "", "<thin ice"),
        (" So <think>hm</think>", False, "", " So <think>hm</think>"),
        ("<th", False, "", "<th"),
    ],
)
def test_a_thought_is_parted_from_the_answer(step, text, thinking, thought, answer):
    assert read(text, step=step, reasoning=thinking) == (thought, answer, [])


def test_a_call_follows_a_thought():
    text = (
        '<think>\nhm <tool_call>\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    )
    assert read(text) == ("hm <tool_call>", "", [("f", '{"a": 1}')])


def test_the_header_of_the_prompt_may_go_on_in_the_answer():
    text = ' to=functions.f<|channel|>commentary <|constrain|>json<|message|>{"a": 1}<|call|>'
    assert calls_of(text, GPT_OSS) == ("", ONE)
    assert calls_of(" to be", GPT_OSS) == (" to be", [])


@pytest.mark.parametrize("step", [1, 9, 1000])
def test_gpt_oss_thinks_again_between_what_it_says_and_its_call(step):
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>I look."
        "<|end|><|start|>assistant<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>commentary"
        ' to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    )
    assert read(text, GPT_OSS, step=step) == ("hm\n\nso", "I look.", [("f", '{"a": 1}')])


@pytest.mark.parametrize("step", [1, 9, 1000])
def test_the_channels_of_gpt_oss_are_no_text(step):
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes<|return|>"
    for functions in (FUNCTIONS, None):
        found = read(text, GPT_OSS, step=step, functions=functions, thought=REASONING[3])
        assert found == ("hm", "Yes", [])


@pytest.mark.parametrize(
    ("template", "special", "dialect", "thought"),
    [
        ("{{ tools }}<tool_call>", (), HERMES, REASONING[0]),
        ("[TOOL_CALLS] [THINK] [/THINK]", ("[TOOL_CALLS]", "[ARGS]", "[/THINK]"), MISTRAL, REASONING[1]),
        ('{"name": function name, "parameters": …}', ("<|python_tag|>",), LLAMA, REASONING[0]),
        ("<｜tool▁calls▁begin｜>", (), DEEPSEEK, REASONING[0]),
        ("<|tool_calls_section_begin|>", (), KIMI, REASONING[0]),
        ("<|tool_call|>", ("<|tool_call|>",), GRANITE, REASONING[0]),
        ("<|start|><|channel|>", ("<|channel|>", "<|message|>"), GPT_OSS, REASONING[3]),
        ("{{ messages }}", (), UNKNOWN, REASONING[0]),
        ("<tool_call><function=f>", (), QWEN_CODER, REASONING[0]),
        ("<tool_call>f<arg_key>", (), GLM, REASONING[0]),
        ("[func_name1(a=1)] <|python_tag|>", (), PYTHONIC, REASONING[0]),
        ("<｜tool▁calls▁begin｜>```json", (), DEEPSEEK_R1, REASONING[0]),
    ],
)
def test_the_template_and_the_tokenizer_tell_the_markup(template, special, dialect, thought):
    ids = {word: i for i, word in enumerate(special)}
    codec = SimpleNamespace(template=template, special_token=ids.get)
    found = markup_of(codec)
    assert found.dialect is dialect
    assert found.reasoning == thought
    assert set(found.tokens) == set(special)


@pytest.mark.parametrize(
    ("dialect", "text", "arguments"),
    [
        (HERMES, '<tool_call>{"arguments": {"a": "\\ud800"}, "name": "f"}</tool_call>', {"a": "\ufffd"}),
        (
            HERMES,
            '<tool_call>{"arguments": {"\\udc00": "\\ud83d\\ude00"}, "name": "f"}</tool_call>',
            {"\ufffd": "😀"},
        ),
        (
            HERMES,
            '<tool_call>f<arg_key>z</arg_key><arg_value>["\\ud800"]</arg_value></tool_call>',
            {"z": ["\ufffd"]},
        ),
        (HERMES, "<tool_call>f<arg_key>n</arg_key><arg_value>1e999</arg_value></tool_call>", {"n": "1e999"}),
        (PYTHONIC, "[f(a='\\ud800')]", {"a": "\ufffd"}),
        (PYTHONIC, "[f(**{'\\ud800': 1})]", {"\ufffd": 1}),
        (PYTHONIC, "[f(a=1e999)]", {"arguments": "a=1e999"}),
    ],
)
def test_what_no_json_can_carry_is_replaced_before_it_is_given_out(dialect, text, arguments):
    for step in (1, 10_000):
        _, _, calls = read(text, dialect, step=step)
        ((name, told),) = calls
        assert (name, json.loads(told)) == ("f", arguments)
        told.encode()


def test_a_number_beyond_all_bounds_makes_no_call_that_would_have_to_be_written_again():
    said, calls = calls_of('<tool_call>{"arguments": {"a": 1e999}, "name": "f"}</tool_call>', HERMES)
    assert calls == []
    assert "1e999" in said


LONG = "mcp__" + "a" * 123
"""As long as a name may be."""


@pytest.mark.parametrize(
    ("dialect", "text"),
    [(dialect, text.replace("get_weather", LONG)) for dialect, text, _ in NATIVE if "get_weather" in text]
    + [(dialect, re.sub(r"\bf\b", LONG, text)) for dialect, text, calls in NATIVE if calls == ONE],
)
def test_a_long_name_is_read_like_any_other(dialect, text):
    for step in (1, 3, 10_000):
        _, said, calls = read(text, dialect, step=step, functions={LONG: FUNCTIONS["f"], "f": FUNCTIONS["f"]})
        assert LONG in [name for name, _ in calls]
        assert LONG not in said


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1e999, "b": [-1e999, 2]}', {"a": None, "b": [None, 2]}),
        (r'{"a": "\ud800", "b": "\ud83d\ude00", "c": 1}', {"a": "\ufffd", "b": "😀", "c": 1}),
        (r'{"a": "\\ud800", "b": "\n\udfff\ud800"}', {"a": r"\ud800", "b": "\n\ufffd\ufffd"}),
        ('{"a": 1, "b": "cut', {"a": 1}),
    ],
)
def test_arguments_that_are_told_as_an_object_can_be_sent(text, found):
    assert arguments_object(text) == found


def test_how_much_a_model_thinks_is_said_in_the_words_that_its_template_knows():
    assert reasoning_options(None) == {}
    qwen, gpt_oss, granite = (
        jinja2.Template(text)
        for text in (
            "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}",
            "Reasoning: {{ reasoning_effort | default('medium') }}",
            "{% if thinking %}Think first.{% endif %}",
        )
    )
    assert [one.render() for one in (qwen, gpt_oss, granite)] == ["", "Reasoning: medium", ""]
    beyond = [reasoning_options(effort) for effort in ("minimal", "xhigh", "max")]
    assert [gpt_oss.render(one) for one in beyond] == ["Reasoning: low", "Reasoning: high", "Reasoning: high"]
    none, high = reasoning_options("none"), reasoning_options("high")
    assert [one.render(none) for one in (qwen, granite)] == ["<think></think>", ""]
    assert [one.render(high) for one in (qwen, gpt_oss, granite)] == ["", "Reasoning: high", "Think first."]


def test_tokens_of_reasoning_are_counted():
    reader = AnswerSyntax(Markup(HERMES)).reader()
    for token in ("<think>", "I", " add", "</think>", "4"):
        reader.push(token)
    assert reader.reasoning_tokens == 3  # what opens it too, and not what closes it
