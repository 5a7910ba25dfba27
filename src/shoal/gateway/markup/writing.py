"""What an answer may be that calls: a grammar in the markup of the model's family.

Where the markup has no way to hold arguments to their schema, a tool's calls are JSON in it, which every
reader of calls knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from shoal.gateway.grammar.grammar import json_rule
from shoal.gateway.grammar.relax import SAYS_NOTHING
from shoal.gateway.markup.argument_types import TEXT, types_of
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
    UNKNOWN,
    Dialect,
    Markup,
)
from shoal.gateway.markup.tools import CLOSING, OPENING, Calling

_TEXT = "TEXT: /(.|\\n)+/"
_FLAT = SAYS_NOTHING | {
    *("type", "properties", "required", "additionalProperties", "$schema", "$id", "$defs", "definitions")
}
"""What a schema may have whose arguments are written each by itself."""
_PLAIN = SAYS_NOTHING | {"type", "enum", "const"}
"""What a text may have that is written without quotes."""
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TAGGED_NAME = re.compile(r"[^<>\s][^<>\n]{0,62}(?<!\s)|[^<>\s]")


def calls_grammar(
    calling: Calling,
    schemas: Sequence[Mapping[str, Any]],
    markup: Markup,
    *,
    reasoning: bool,
    answer: Mapping[str, Any] | None = None,
) -> tuple[str | None, Dialect]:
    """What the answer may be: calls, or where none is demanded also text with calls at its end; and in which
    dialect it is to be read.

    Args:
        schemas: of each function's arguments.
        reasoning: whether the prompt has opened reasoning, which comes before the calls.
        answer: the schema that an answer without calls keeps to; ``None`` where that may be any text.

    Returns: ``None`` where only demanded calls have a grammar.
    """
    tools = [
        Writable(place, function.name, schema)
        for place, (function, schema) in enumerate(zip(calling.functions, schemas, strict=True))
    ]
    dialect = markup.dialect
    calls, rules, free = _WRITERS[dialect.name](tools, markup, calling.several)
    if not calling.must and not free and answer is None:
        return None, dialect
    begins = _reasoning(markup, reasoning) if dialect != GPT_OSS else []
    before = "reasoning " if reasoning and calling.must else "reasoning? " if begins else ""
    start = calls if calling.must else free
    if answer is not None:  # it begins as one that keeps to a format begins
        before = "reasoning " if reasoning and begins else ""
        start = f"{calls} | {_final(markup)}answer"
        rules = [*rules, f"answer: {json_rule(answer)}"]
    rules = [f"start: {before}({start})", *begins, *rules, _TEXT]
    written = "\n".join(rules)
    used = {i for i in range(len(schemas)) if re.search(rf"\bargs_{i}\b", written)}
    rules += [f"args_{i}: {json_rule(schemas[i])}" for i in sorted(used)]
    return "\n".join(rules), dialect


def answer_grammar(schema: Mapping[str, Any], markup: Markup, *, reasoning: bool) -> str:
    """An answer in JSON, behind the reasoning that the prompt has opened."""
    rules = [f"answer: {json_rule(schema)}"]
    if final := _final(markup):
        return "\n".join([f"start: {final}answer", _analysis(markup), _TEXT, *rules])
    if not reasoning:
        return "\n".join(["start: answer", *rules])
    return "\n".join(["start: reasoning answer", *_reasoning(markup, reasoning), _TEXT, *rules])


def _final(markup: Markup) -> str:
    """What stands before an answer by a schema, where its family puts it into a channel."""
    if markup.dialect != GPT_OSS or "<|channel|>" not in markup.tokens:
        return ""
    return f"analysis? {_words(markup, '<|channel|>final<|message|>')} "


def _marker(markup: Markup, word: str) -> str:
    """A marker in a grammar: a token of its own, or text."""
    return f"<[{markup.tokens[word]}]>" if word in markup.tokens else _quoted(word)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _words(markup: Markup, text: str) -> str:
    """A text in a grammar, with markers in it that may be tokens of their own."""
    known = "|".join(map(re.escape, sorted(markup.tokens, key=len, reverse=True)))
    parts = re.split(f"({known})", text) if known else [text]
    return " ".join(_marker(markup, part) for part in parts if part)


def _regex(text: str) -> str:
    """A text within a regular expression of a grammar."""
    return re.escape(text).replace("\\\n", "\\n").replace("/", "\\/")


def _reasoning(markup: Markup, reasoning: bool) -> list[str]:
    """The rules of reasoning before an answer; none where it is text like any other."""
    opening, closing = markup.reasoning
    if closing in markup.tokens:
        begin = "" if reasoning or opening not in markup.tokens else f"{_marker(markup, opening)} "
        return [f"reasoning: {begin}TEXT? {_marker(markup, closing)} BLANKS?", "BLANKS: /[ \\n]+/"]
    if not reasoning:
        return []
    return [f"reasoning: thinks BLANKS?\nthinks[lazy]: /(.|\\n)*{_regex(closing)}/", "BLANKS: /[ \\n]+/"]


@dataclass(frozen=True, slots=True)
class Writable:
    """A function that is to be called in a grammar."""

    place: int
    """Among the functions of the request: ``args_0`` are the first one's arguments."""
    name: str
    schema: Mapping[str, Any]


Written = tuple[str, list[str], str]
"""What calls are; the rules of which they are made; and what an answer is that may be text too, or nothing
where no grammar can say that."""


def _free(markup: Markup, opening: str, calls: str, rest: str) -> tuple[list[str], str]:
    """Text, or text with calls behind: after the marker the calls are held to their grammar."""
    if opening in markup.tokens:
        return [], f"TEXT? {calls} | TEXT"
    return [f"opening[lazy]: /(.|\\n)*{_regex(opening)}/"], f"opening {rest} | TEXT?"


def _any_body(tools: Sequence[Writable]) -> str:
    return f"body: {' | '.join(f'body_{tool.place}' for tool in tools)}"


def _json_body(tool: Writable, arguments: str) -> str:
    head = _quoted(f'{{"name": "{tool.name}", "{arguments}": ')
    return f'body_{tool.place}: {head} args_{tool.place} "}}"'


def _bodies(tools: Sequence[Writable], arguments: str) -> list[str]:
    return [_any_body(tools), *(_json_body(tool, arguments) for tool in tools)]


def _hermes(tools: Sequence[Writable], markup: Markup, several: bool) -> Written:
    opening = _marker(markup, OPENING)
    rest = f'"\\n" body "\\n" {_marker(markup, CLOSING)}'
    more = f' ("\\n" {opening} {rest})*' if several else ""
    rules, free = _free(markup, OPENING, f"{opening} {rest}{more}", f"{rest}{more}")
    return f"{opening} {rest}{more}", [*_bodies(tools, "arguments"), *rules], free


def _mistral(tools: Sequence[Writable], markup: Markup, several: bool) -> Written:
    word = MISTRAL.openings[0]
    opening = _marker(markup, word)
    if "[ARGS]" in markup.tokens:
        between = _marker(markup, "[ARGS]")
        named = [f"{_quoted(tool.name)} {between} args_{tool.place}" for tool in tools]
        bodies = [f"body: {' | '.join(named)}"]
        rest = f"body ({opening} body)*" if several else "body"
    else:
        bodies = _bodies(tools, "arguments")
        rest = '" "? "[" body ' + ('(", " body)* ' if several else "") + '"]"'
    rules, free = _free(markup, word, f"{opening} {rest}", rest)
    return f"{opening} {rest}", [*bodies, *rules], free


def _llama(tools: Sequence[Writable], markup: Markup, several: bool) -> Written:
    tag = f"{_marker(markup, LLAMA.openings[0])}? " if LLAMA.openings[0] in markup.tokens else ""
    calls = f"{tag}body" + (' ("; " body)*' if several else "")
    known = "|".join(_regex(tool.name) for tool in tools)
    # Whatever begins as a call of a function that there is, must be one.
    free = f'FREE: /(.|\\n)*/ & ~/[ \\n]*\\{{"name": "({known})"(.|\\n)*/'
    return calls, [*_bodies(tools, LLAMA.arguments), free], f"{calls} | FREE"


@dataclass(frozen=True, slots=True)
class Wrapped:
    """Calls as several families write them: each in markers, and all of them in markers too."""

    head: str
    """Before the arguments of ``{name}``; ``{index}`` is a number."""
    tail: str
    between: str
    first: str = ""
    closing: str = ""

    def write(self, tools: Sequence[Writable], markup: Markup, several: bool) -> Written:
        """See :data:`Written`."""
        opening = markup.dialect.openings[0]
        closing = self.closing
        if GRANITE.endings[-1] in markup.tokens and markup.dialect == GRANITE:
            closing += GRANITE.endings[-1]
        bodies = [
            f"body_{tool.place}: {self._head(tool, markup)} args_{tool.place} {self._tail(markup)}"
            for tool in tools
        ]
        more = f"({_words(markup, self.between)} body)*" if several else ""
        rest = f"{_words(markup, self.first)} body {more} {_words(markup, closing)}"
        rules, free = _free(markup, opening, f"{_marker(markup, opening)} {rest}", rest)
        indexed = ["INDEX: /[0-9]{1,3}/"] if "{index}" in self.head else []
        return f"{_marker(markup, opening)} {rest}", [_any_body(tools), *bodies, *indexed, *rules], free

    def _head(self, tool: Writable, markup: Markup) -> str:
        parts = self.head.replace("{name}", tool.name).split("{index}")
        return " INDEX ".join(_words(markup, part) for part in parts)

    def _tail(self, markup: Markup) -> str:
        return _words(markup, self.tail)


def _analysis(markup: Markup) -> str:
    opening, closing = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant"
    return f"analysis: {_words(markup, opening)} TEXT? {_words(markup, closing)}"


def _gpt_oss(tools: Sequence[Writable], markup: Markup, several: bool) -> Written:
    """One call: its end is the answer's."""
    heads = {
        tool.place: _words(
            markup, f"<|channel|>commentary to=functions.{tool.name} <|constrain|>json<|message|>"
        )
        for tool in tools
    }
    calls = [f"call_{place}: {head} args_{place}" for place, head in heads.items()]
    call = " | ".join(f"call_{tool.place}" for tool in tools)
    if "<|channel|>" not in markup.tokens:
        return f"({call})", calls, ""
    final = f"{_words(markup, '<|channel|>final<|message|>')} TEXT"
    before, behind = "<|channel|>commentary<|message|>", "<|end|><|start|>assistant"
    said = f"{_words(markup, before)} TEXT {_words(markup, behind)}"
    rules = [*calls, _analysis(markup), f"said: {said}"]
    return f"analysis? ({call})", rules, f"analysis? ((said analysis?)? ({call}) | {final})"


def _fields(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """The arguments that a schema describes, where that is all it does, each with its definitions."""
    properties: object = schema.get("properties")
    if not isinstance(properties, dict) or not schema.keys() <= _FLAT:
        return None
    found = cast("dict[str, Any]", properties)
    required: object = schema.get("required", [])
    known = isinstance(required, list) and all(
        isinstance(name, str) and name in found for name in cast("list[object]", required)
    )
    others = schema.get("additionalProperties", False)
    if not known or others not in (False, True) or (others is True and not found):
        return None
    if not all(isinstance(field, dict) for field in found.values()):
        return None
    shared = {word: schema[word] for word in ("$defs", "definitions") if word in schema}
    return {name: {**shared, **field} for name, field in found.items()}


def _plain_text(field: Mapping[str, Any]) -> bool:
    return field.keys() <= _PLAIN | {"$defs", "definitions"}


@dataclass(frozen=True, slots=True)
class Tagging:
    """How a family writes arguments in tags."""

    head: str
    argument: str
    closing: str
    tail: str
    first: str
    last: str

    def write(self, tools: Sequence[Writable], markup: Markup, several: bool) -> Written:
        """See :data:`Written`."""
        rules = [rule for tool in tools for rule in self._body(tool, markup)]
        opening = _marker(markup, OPENING)
        rest = f"body {_marker(markup, CLOSING)}"
        more = f' ("\\n" {opening} {rest})*' if several else ""
        free_rules, free = _free(markup, OPENING, f"{opening} {rest}{more}", f"{rest}{more}")
        until = [self._until(markup)] if any(" until" in rule for rule in rules) else []
        return f"{opening} {rest}{more}", [_any_body(tools), *rules, *until, *free_rules], free

    def _until(self, markup: Markup) -> str:
        """A text up to the tag that ends it."""
        word = self.closing.strip()
        if word in markup.tokens:
            return f"until: TEXT? {_words(markup, self.closing)}"
        return f"until[lazy]: /(.|\\n)*{_regex(self.closing)}/"

    def _body(self, tool: Writable, markup: Markup) -> list[str]:
        fields = _fields(tool.schema)
        if fields is None or not all(self._can(name, field) for name, field in fields.items()):
            head = _quoted(f'\n{{"name": "{tool.name}", "arguments": ')
            return [f'body_{tool.place}: {head} args_{tool.place} "}}\\n"']
        required = tool.schema.get("required", [])
        names = [f"arg_{tool.place}_{i}" for i in range(len(fields))]
        parts = [name if key in required else f"{name}?" for name, key in zip(names, fields, strict=True)]
        head = _words(markup, self.first + self.head.replace("{name}", tool.name))
        body = f"body_{tool.place}: {head} {' '.join(parts)} {_words(markup, self.tail) if self.tail else ''}"
        return [
            body,
            *(self._argument(n, k, f, markup) for n, (k, f) in zip(names, fields.items(), strict=True)),
        ]

    def _can(self, name: str, field: dict[str, Any]) -> bool:
        if _TAGGED_NAME.fullmatch(name) is None:
            return False
        if types_of(field, field) != TEXT:
            return True
        return _plain_text(field) and all(self.closing.strip() not in word for word in _words_of(field))

    def _argument(self, rule: str, name: str, field: dict[str, Any], markup: Markup) -> str:
        head = _words(markup, self.argument.replace("{name}", name))
        last = f" {_quoted(self.last)}" if self.last else ""
        closing = _words(markup, self.closing)
        if types_of(field, field) != TEXT:
            return f"{rule}: {head} value_{rule} {closing}{last}\nvalue_{rule}: {json_rule(field)}"
        words = _words_of(field)
        if words:
            return f"{rule}: {head} ({' | '.join(map(_quoted, words))}) {closing}{last}"
        return f"{rule}: {head} until{last}"


def _words_of(field: Mapping[str, Any]) -> list[str]:
    """The texts of which a field is one; none where it may be any."""
    values: object = [field["const"]] if "const" in field else field.get("enum")
    listed = cast("list[object]", values) if isinstance(values, list) else []
    return [value for value in listed if isinstance(value, str)]


def _python(tools: Sequence[Writable], markup: Markup, several: bool) -> Written:
    rules = [rule for tool in tools for rule in _python_call(tool)]
    more = ' (", " body)*' if several else ""
    calls = f'first{more} "]"'
    rules = [_any_body(tools), f"first: {' | '.join(f'first_{tool.place}' for tool in tools)}", *rules]
    start, end = PYTHONIC.openings[1], PYTHONIC.endings[-1]
    if start in markup.tokens:
        calls = f"{_marker(markup, start)} {calls} {_marker(markup, end)}"
        return calls, rules, f"TEXT? {calls} | TEXT"
    known = "|".join(_regex(tool.name) for tool in tools)
    free = f"FREE: /(.|\\n)*/ & ~/[ \\n]*\\[[ \\n]*({known})\\((.|\\n)*/"
    return calls, [*rules, free], f"{calls} | FREE"


def _python_call(tool: Writable) -> list[str]:
    """``f(a=1, b="x")``; as one argument's JSON where a schema says more than that."""
    fields = _fields(tool.schema)
    if fields is None or not all(_IDENTIFIER.fullmatch(name) for name in fields):
        return _python_body(tool, "(**", f"args_{tool.place}")
    required = tool.schema.get("required", [])
    names = [f"arg_{tool.place}_{i}" for i in range(len(fields))]
    must = [key in required for key in fields]
    orders: list[str] = []
    for first in range(len(names)):
        behind = (
            f'", " {name}' if needed else f'(", " {name})?'
            for name, needed in zip(names[first + 1 :], must[first + 1 :], strict=True)
        )
        orders.append(" ".join([names[first], *behind]))
        if must[first]:
            break
    inside = f"({' | '.join(orders)}){'' if any(must) else '?'}" if orders else ""
    rules = _python_body(tool, "(", inside)
    for name, (key, field) in zip(names, fields.items(), strict=True):
        rules += [f"{name}: {_quoted(key + '=')} value_{name}", f"value_{name}: {json_rule(field)}"]
    return rules


def _python_body(tool: Writable, head: str, inside: str) -> list[str]:
    """One of several calls, and the first. What it begins with is one word: text that may be anything else
    would go on as long as it can."""
    words = {"body": _quoted(tool.name + head), "first": _quoted("[" + tool.name + head)}
    return [f'{rule}_{tool.place}: {word} {inside} ")"' for rule, word in words.items()]


_WRITERS = {
    HERMES.name: _hermes,
    UNKNOWN.name: _hermes,
    MISTRAL.name: _mistral,
    LLAMA.name: _llama,
    PYTHONIC.name: _python,
    GPT_OSS.name: _gpt_oss,
    DEEPSEEK.name: Wrapped(
        "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "", closing="<｜tool▁calls▁end｜>"
    ).write,
    DEEPSEEK_R1.name: Wrapped(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        "\n",
        closing="<｜tool▁calls▁end｜>",
    ).write,
    KIMI.name: Wrapped(
        "<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "",
        closing="<|tool_calls_section_end|>",
    ).write,
    GRANITE.name: Wrapped('{"name": "{name}", "arguments": ', "}", ", ", first="[", closing="]").write,
    QWEN_CODER.name: Tagging(
        "<function={name}>\n", "<parameter={name}>\n", "\n</parameter>", "</function>\n", "\n", "\n"
    ).write,
    GLM.name: Tagging(
        "{name}\n", "<arg_key>{name}</arg_key>\n<arg_value>", "</arg_value>", "", "", "\n"
    ).write,
}
