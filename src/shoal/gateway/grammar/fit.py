"""What an answer is held to, found out before it begins: a schema that no grammar can hold it to is relaxed.

All that cannot be enforced is left out, and the answer says of which tool. Who says ``strict`` is refused
instead, with the keyword's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from shoal.errors import UsageError
from shoal.gateway.errors import BadRequest
from shoal.gateway.grammar.grammar import MAX_SCHEMAS, Grammars, json_rule
from shoal.gateway.grammar.relax import UNKNOWN, LeftOut, relax
from shoal.gateway.markup.dialects import Dialect, markup_of
from shoal.gateway.markup.reader import AnswerSyntax
from shoal.gateway.markup.tools import Calling
from shoal.gateway.markup.writing import answer_grammar, calls_grammar
from shoal.gateway.models import Servable

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
LONGEST_PATTERN = 256
"""Characters of one that is looked at for plain mistakes: Python needs 10 ms for ten of ``(?i:[Ā-耀])``."""
LOOKED_AT = 8
"""Keywords that were left out, of which it is found out whether they are mistakes."""
GrammarChecker = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """A schema that the whole answer is to keep to."""

    schema: Mapping[str, Any]
    param: str
    """Where in the request it is."""
    strict: bool = False

    @property
    def field(self) -> str:
        """The field of the request that asks for it."""
        return self.param.removesuffix(".schema").removesuffix(".json_schema")


@dataclass(frozen=True, slots=True)
class Fit:
    """How one request is answered."""

    grammar: str | None
    """``None`` for free text."""
    syntax: AnswerSyntax
    relaxed: tuple[str, ...] = ()
    """What was relaxed: tools by their names, or the field of the format."""
    why: tuple[str, ...] = ()
    """The same, for the log: with each keyword that was left out."""
    schema: Mapping[str, Any] | None = None
    """What is left of the format."""


async def fit(
    grammars: Grammars,
    model: Servable,
    opening: str,
    calling: Calling | None,
    format: AnswerSchema | None,
) -> Fit:
    """What an answer is held to, and how it is read.

    With a format an answer that may call is a call, or keeps to the format.

    Args:
        opening: what the chat template has written at the prompt's end, which may have opened reasoning. What
            others have written opens none.

    Raises:
        BadRequest: a schema that is ``strict``, or wrong, cannot be enforced; schemas are too large; or there
            is a format where a call is demanded.
        LimitReached: too many others have theirs looked at.
        UsageError: a grammar is needed, and the model's tokenizer tells no bytes.
    """
    markup = markup_of(model.codec)
    reasoning = opening.rstrip().endswith(markup.reasoning[0])
    functions, barred = (calling.arguments, calling.barred) if calling else (None, frozenset[str]())
    if format is not None:
        if calling is not None and calling.must:
            raise BadRequest(
                f"{format.field} asks for JSON where tool_choice demands a call: it cannot be both",
                param=format.field,
            )
        syntax = AnswerSyntax(markup, functions, barred, reasons=False, reasoning=reasoning, calls_first=True)
        refused = await grammars.checker(model)
        if calling is None:
            return await grammars.checked(partial(_fit_format, format, syntax, refused))
        return await grammars.checked(partial(_fit_calls, calling, syntax, refused, format))
    syntax = AnswerSyntax(markup, functions, barred, reasoning=reasoning)
    if calling is None:
        return Fit(None, syntax)
    try:
        refused = await grammars.checker(model)
    except UsageError as error:
        if calling.must or any(function.strict for function in calling.functions):
            raise
        return Fit(None, syntax, tuple(f.name for f in calling.functions), (f"all tools: {error.message}",))
    return await grammars.checked(partial(_fit_calls, calling, syntax, refused))


def _fit_format(format: AnswerSchema, syntax: AnswerSyntax, refused: GrammarChecker) -> Fit:
    def grammar(schema: Mapping[str, Any]) -> str:
        return answer_grammar(schema, syntax.markup, reasoning=syntax.reasoning)

    _check_size([format.schema], format.param)
    why = refused(grammar(format.schema))
    if not why:
        return Fit(grammar(format.schema), syntax, schema=format.schema)
    found = relax(format.schema, lambda schema: refused(grammar(schema)), least={})
    left_out = found.left_out or (LeftOut("", None, why),)
    wrong = next((one for one in left_out[:LOOKED_AT] if format.strict or _is_wrong(one)), None)
    if wrong is not None:
        raise _cannot(wrong, format.param, "the answer's schema")
    return Fit(grammar(found.schema), syntax, (format.field,), _reasons(format.field, left_out), found.schema)


def _fit_calls(
    calling: Calling, syntax: AnswerSyntax, refused: GrammarChecker, format: AnswerSchema | None = None
) -> Fit:
    schemas = calling.schemas()
    _check_size(schemas, "tools")
    held = _fit_format(format, syntax, refused) if format else Fit(None, syntax)
    write = partial(calls_grammar, markup=syntax.markup, reasoning=syntax.reasoning, answer=held.schema)
    grammar, dialect = write(calling, schemas)
    syntax = replace(syntax, markup=replace(syntax.markup, dialect=dialect))
    if grammar is None or not refused(grammar):
        return replace(held, grammar=grammar, syntax=syntax)
    relaxed: dict[str, tuple[LeftOut, ...]] = {}
    for place, function in enumerate(calling.functions):
        why = refused(_alone(schemas[place]))
        if not why:
            continue
        found = relax(schemas[place], lambda schema: refused(_alone(schema)), least=ANY_OBJECT)
        left_out = found.left_out or (LeftOut("", None, why),)
        if function.strict:
            raise _cannot(
                left_out[0], calling.params.get(function.name, "tools"), f"function {function.name!r}"
            )
        schemas[place], relaxed[function.name] = found.schema, left_out
    grammar = _together(calling, schemas, write, refused, relaxed)
    if grammar is None and format is not None:
        raise BadRequest(
            "the schemas of the tools and of the answer cannot be enforced together", param="tools"
        )
    why = tuple(reason for name, left_out in relaxed.items() for reason in _reasons(name, left_out))
    return Fit(grammar, syntax, (*held.relaxed, *relaxed), (*held.why, *why))


def _together(
    calling: Calling,
    schemas: list[dict[str, Any]],
    write: Callable[[Calling, list[dict[str, Any]]], tuple[str | None, Dialect]],
    refused: GrammarChecker,
    relaxed: dict[str, tuple[LeftOut, ...]],
) -> str | None:
    """The grammar of all calls. Where together they are too much, the largest schemas go first, half of them
    at a time."""
    lengths = {place: len(json_rule(schema)) for place, schema in enumerate(schemas)}
    order = sorted(lengths, key=lambda place: -lengths[place])
    order = [place for place in order if not calling.functions[place].strict]
    while True:
        grammar, _ = write(calling, schemas)
        why = refused(grammar) if grammar is not None else ""
        if not why:
            return grammar
        if not order:
            break
        half = (len(order) + 1) // 2
        for place in order[:half]:
            schemas[place] = dict(ANY_OBJECT)
            relaxed[calling.functions[place].name] = (LeftOut("", None, why),)
        order = order[half:]
    if calling.must or any(function.strict for function in calling.functions):
        raise BadRequest(f"the tools' schemas together cannot be enforced: {why}", param="tools")
    return None


def _check_size(schemas: Sequence[Mapping[str, Any]], param: str) -> None:
    size = sum(len(json.dumps(schema)) for schema in schemas)
    if size > MAX_SCHEMAS:
        raise BadRequest(
            f"{param}: schemas of {size} characters; at most {MAX_SCHEMAS} are taken", param=param
        )


def _alone(schema: Mapping[str, Any]) -> str:
    return f"start: {json_rule(schema)}"


def _is_wrong(left_out: LeftOut) -> bool:
    """Whether a keyword means nothing at all, so that who wrote it cannot want to be without it."""
    value = left_out.value
    if left_out.why == UNKNOWN:
        return False
    if left_out.keyword == "$ref":
        return isinstance(value, str) and value.startswith("#")
    if left_out.keyword == "pattern" and isinstance(value, str) and len(value) <= LONGEST_PATTERN:
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError):
            return True
    return left_out.keyword == "type"


def _cannot(left_out: LeftOut, param: str, whose: str) -> BadRequest:
    where = f"{param}.{left_out.path}" if left_out.path else param
    what = f"the keyword {left_out.keyword[:64]!r}" if left_out.path else "the schema"
    return BadRequest(
        f"{where[:200]}: {what} of {whose} cannot be enforced ({left_out.why})", param=where[:200]
    )


def _reasons(name: str, left_out: Sequence[LeftOut]) -> tuple[str, ...]:
    return tuple(f"{name}: {one.path[:200]!r} ({one.why})" for one in left_out[:8])
