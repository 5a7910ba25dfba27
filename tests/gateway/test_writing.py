"""Grammars hold a model to calls in its own family's markup, and what they permit is read as it was meant."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from shoal.gateway.grammar.grammar import LIMITS
from shoal.gateway.markup.dialects import (
    DEEPSEEK,
    DEEPSEEK_R1,
    GLM,
    GPT_OSS,
    GRANITE,
    HERMES,
    KIMI,
    KNOWN,
    LLAMA,
    MISTRAL,
    PYTHONIC,
    QWEN_CODER,
    REASONING,
    Markup,
)
from shoal.gateway.markup.events import ArgumentsDelta, CallStart
from shoal.gateway.markup.reader import AnswerSyntax
from shoal.gateway.markup.tools import Calling
from shoal.gateway.markup.writing import answer_grammar, calls_grammar
from shoal.gateway.schema.common import Function

FIELDS = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "unit": {"enum": ["C", "F"]},
    "at": {"$ref": "#/$defs/At"},
}
WEATHER = {
    "type": "object",
    "properties": FIELDS,
    "required": ["city"],
    "$defs": {"At": {"type": "array", "items": {"type": "number"}}},
}
PATTERN = {"type": "object", "properties": {"v": {"type": "string", "pattern": "^[ab]+$"}}, "required": ["v"]}
TOOLS = Calling(
    (
        Function(name="weather", parameters=WEATHER),
        Function(name="now"),
        Function(name="p", parameters=PATTERN),
    ),
    must=True,
)
HARMONY = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
END = 256


class Bytes:
    """A tokenizer with a token for each byte, one that ends, and some markers."""

    bos_token_id = None
    eos_token_id = END

    def __init__(self, markers: tuple[str, ...]) -> None:
        self.markers = {word: END + 1 + i for i, word in enumerate(markers)}
        self.tokens = [*(bytes([i]) for i in range(256)), b"<end>", *(word.encode() for word in markers)]
        self.special_token_ids = [END, *self.markers.values()]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def tokens_of(self, text: str) -> list[int]:
        """With its markers as tokens of their own."""
        for word, token in self.markers.items():
            text = text.replace(word, chr(0xE000 + token))
        return [
            token
            for letter in text
            for token in ([ord(letter) - 0xE000] if "\ue000" <= letter < "\uf000" else self(letter))
        ]


def accepts(grammar: str, text: str, markers: tuple[str, ...] = ()) -> bool:
    """Whether an answer may be ``text``, the whole of it."""
    words = Bytes(markers)
    tokenizer = LLTokenizer(TokenizerWrapper(words), eos_token=[END])
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    assert not matcher.is_error(), (matcher.get_error(), grammar)
    tokens = words.tokens_of(text)
    return matcher.validate_tokens([*tokens, END]) == len(tokens) + 1


def markup(dialect, markers=(), reasoning=REASONING[0]):
    return Markup(dialect, reasoning, Bytes(markers).markers)


def calls_of(dialect, text):
    reader = AnswerSyntax(markup(dialect), TOOLS.arguments).reader()
    said = reader.push(text) + reader.finish()
    names = [one.name for one in said if isinstance(one, CallStart)]
    told = [
        "".join(d.text for d in said if isinstance(d, ArgumentsDelta) and d.index == i)
        for i in range(len(names))
    ]
    return [(name, json.loads(arguments)) for name, arguments in zip(names, told, strict=True)]


XML = (
    "<tool_call>\n<function=weather>\n<parameter=city>\n{city}\n</parameter>\n{more}</function>\n</tool_call>"
)
KEYED = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{city}</arg_value>\n{more}</tool_call>"
ROME = {"city": "Rome"}
CASES = [
    (HERMES, (), '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>', ROME),
    (MISTRAL, (), '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]', ROME),
    (LLAMA, (), '{"name": "weather", "parameters": {"city": "Rome"}}', ROME),
    (GRANITE, (), '<|tool_call|>[{"name": "weather", "arguments": {"city": "Rome"}}]', ROME),
    (
        KIMI,
        ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|>',
        ROME,
    ),
    (
        DEEPSEEK,
        (),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ROME,
    ),
    (
        DEEPSEEK_R1,
        ("<｜tool▁calls▁begin｜>",),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ROME,
    ),
    (
        GPT_OSS,
        (),
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}',
        ROME,
    ),
    (
        GPT_OSS,
        HARMONY,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        '<|constrain|>json<|message|>{"city": "Rome"}',
        ROME,
    ),
    (QWEN_CODER, (), XML.format(city="Ro\nme <b>", more=""), {"city": "Ro\nme <b>"}),
    (QWEN_CODER, ("<tool_call>", "</tool_call>"), XML.format(city="1", more=""), {"city": "1"}),
    (
        QWEN_CODER,
        (),
        XML.format(
            city="Rome",
            more="<parameter=days>\n2\n</parameter>\n<parameter=unit>\nC\n</parameter>\n"
            "<parameter=at>\n[1, 2.5]\n</parameter>\n",
        ),
        {"city": "Rome", "days": 2, "unit": "C", "at": [1, 2.5]},
    ),
    (
        GLM,
        (),
        KEYED.format(city="Rome", more="<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n"),
        {"city": "Rome", "days": 2},
    ),
    (
        GLM,
        ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        KEYED.format(city="Rome", more=""),
        ROME,
    ),
    (PYTHONIC, (), '[weather(city="Rome", unit="F", at=[1])]', {"city": "Rome", "unit": "F", "at": [1]}),
    (
        PYTHONIC,
        ("<|tool_call_start|>", "<|tool_call_end|>"),
        '<|tool_call_start|>[weather(city="Rome")]<|tool_call_end|>',
        ROME,
    ),
]


@pytest.mark.parametrize(
    ("dialect", "markers", "text", "arguments"), CASES, ids=lambda value: str(value)[:40]
)
def test_a_demanded_call_is_in_the_models_own_markup(dialect, markers, text, arguments):
    grammar, read_as = calls_grammar(TOOLS, TOOLS.schemas(), markup(dialect, markers), reasoning=False)
    assert read_as is dialect
    assert accepts(grammar, text, markers)
    assert calls_of(dialect, text) == [("weather", arguments)]
    for wrong in (
        text.replace("weather", "whether"),
        text.replace("city", "town"),
        "It is sunny.",
        text + "!",
        "",
    ):
        assert not accepts(grammar, wrong, markers), wrong


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        (QWEN_CODER, XML.format(city="Rome", more="<parameter=days>\ntwo\n</parameter>\n")),
        (QWEN_CODER, XML.format(city="Rome", more="<parameter=unit>\nK\n</parameter>\n")),
        (QWEN_CODER, "<tool_call>\n<function=weather>\n</function>\n</tool_call>"),
        (GLM, KEYED.format(city="Rome", more="<arg_key>days</arg_key>\n<arg_value>2.5</arg_value>\n")),
        (PYTHONIC, "[weather()]"),
        (PYTHONIC, "[weather(days=2)]"),
        (PYTHONIC, '[weather(city="Rome", days="2")]'),
    ],
)
def test_arguments_that_are_no_json_are_held_to_their_schema_too(dialect, text):
    grammar, _ = calls_grammar(TOOLS, TOOLS.schemas(), markup(dialect), reasoning=False)
    assert not accepts(grammar, text)


@pytest.mark.parametrize(
    ("dialect", "text", "wrong"),
    [
        (QWEN_CODER, '<tool_call>\n{"name": "p", "arguments": {"v": "ab"}}\n</tool_call>', '"abc"'),
        (GLM, '<tool_call>\n{"name": "p", "arguments": {"v": "ab"}}\n</tool_call>', '"abc"'),
        (PYTHONIC, '[p(v="ab")]', '"abc"'),
    ],
)
def test_what_the_markup_cannot_hold_is_json_in_it(dialect, text, wrong):
    grammar, _ = calls_grammar(TOOLS, TOOLS.schemas(), markup(dialect), reasoning=False)
    assert accepts(grammar, text)
    assert calls_of(dialect, text) == [("p", {"v": "ab"})]
    assert not accepts(grammar, text.replace('"ab"', wrong))


NOW = {
    QWEN_CODER: "<tool_call>\n<function=now>\n</function>\n</tool_call>",
    GLM: "<tool_call>now\n</tool_call>",
    PYTHONIC: "[now()]",
}


@pytest.mark.parametrize("dialect", NOW, ids=lambda dialect: dialect.name)
def test_several_calls_of_which_one_has_no_arguments(dialect):
    one = NOW[dialect]
    text = "[now(), now()]" if dialect is PYTHONIC else f"{one}\n{one}"
    for several in (True, False):
        calling = Calling(TOOLS.functions, must=True, several=several)
        grammar, _ = calls_grammar(calling, calling.schemas(), markup(dialect), reasoning=False)
        assert accepts(grammar, one)
        assert accepts(grammar, text) is several
    assert calls_of(dialect, text) == [("now", {}), ("now", {})]


@pytest.mark.parametrize("dialect", KNOWN, ids=lambda dialect: dialect.name)
def test_where_a_call_may_be_made_text_may_be_said_and_a_call_that_begins_is_held(dialect):
    calling = Calling(TOOLS.functions)
    markers = HARMONY if dialect is GPT_OSS else ()
    grammar, _ = calls_grammar(calling, calling.schemas(), markup(dialect, markers), reasoning=False)
    said = "<|channel|>final<|message|>It is sunny." if dialect is GPT_OSS else "It is sunny."
    assert accepts(grammar, said, markers)
    for known, used, text, _ in CASES:
        if known is dialect and used == markers:
            assert accepts(grammar, text, markers)
            assert not accepts(grammar, text.replace("city", "town"), markers)


@pytest.mark.parametrize("dialect", KNOWN, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    "odd",
    [
        {"properties": {"v": {"type": "string", "enum": None}}},
        {"properties": {"v": {"type": "string", "enum": {"a": 1}}}},
        {"properties": {"v": {"type": "string", "enum": 5}}},
        {"properties": {"v": {"type": "string"}}, "required": [["a"]]},
        {"properties": {"v": {"type": "string"}}, "required": [{}, 1, None, "v"]},
        {"properties": {"v": {"type": [["string"]]}}, "required": {"v": 1}},
        {"properties": {"v": {"const": ["a"]}, "w": 5}},
    ],
    ids=str,
)
def test_an_odd_schema_is_written_for_the_grammar_to_refuse(dialect, odd):
    calling = Calling((Function(name="f", parameters={"type": "object"} | odd),), must=True)
    markers = HARMONY if dialect is GPT_OSS else ()
    grammar, _ = calls_grammar(calling, calling.schemas(), markup(dialect, markers), reasoning=False)
    assert grammar is not None


@pytest.mark.parametrize("dialect", KNOWN, ids=lambda dialect: dialect.name)
def test_with_a_format_an_answer_is_a_call_or_keeps_to_it(dialect):
    calling = Calling(TOOLS.functions)
    markers = HARMONY if dialect is GPT_OSS else ()
    marked = markup(dialect, markers)
    grammar, _ = calls_grammar(calling, calling.schemas(), marked, reasoning=False, answer={"const": [4]})
    before = "<|channel|>final<|message|>" if dialect is GPT_OSS else ""
    assert accepts(grammar, f"{before}[4]", markers)
    for wrong in ("[5]", "It is sunny.", "[4] and more", ""):
        assert not accepts(grammar, before + wrong, markers)
    calls = [text for known, used, text, _ in CASES if known is dialect and used == markers]
    assert all(accepts(grammar, text, markers) for text in calls)
    assert not any(accepts(grammar, text + "[4]", markers) for text in calls)


@pytest.mark.parametrize("dialect", [one for one in KNOWN if one is not GPT_OSS], ids=lambda one: one.name)
def test_what_keeps_to_a_format_has_no_calls_and_what_begins_with_one_has(dialect):
    syntax = AnswerSyntax(markup(dialect), TOOLS.arguments, reasons=False, calls_first=True)
    for known, used, text, _ in CASES:
        if known is not dialect or used:
            continue
        for step in (1, 5, 1000):
            for said, called in (
                (text, True),
                ("\n" + text, True),
                (json.dumps(["a", text]), False),
                (f'"{text}"', False),
            ):
                reader = syntax.reader()
                found = [e for i in range(0, len(said), step) for e in reader.push(said[i : i + step])]
                found += reader.finish()
                assert any(isinstance(one, CallStart) for one in found) is called, said
                if not called:
                    assert "".join(found) == said


def test_an_answer_of_gpt_oss_that_keeps_to_a_schema_is_in_its_final_channel():
    grammar = answer_grammar({"const": 4}, markup(GPT_OSS, HARMONY), reasoning=False)
    assert accepts(grammar, "<|channel|>final<|message|>4", HARMONY)
    thought = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
    assert accepts(grammar, f"{thought}<|channel|>final<|message|>4", HARMONY)
    assert not accepts(grammar, "<|channel|>final<|message|>5", HARMONY)
    reader = AnswerSyntax(markup(GPT_OSS), None, reasons=False).reader()
    assert reader.push("<|channel|>final<|message|>4") + reader.finish() == ["4"]
