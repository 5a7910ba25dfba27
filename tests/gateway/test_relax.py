"""What is left of a schema of which some cannot be kept to."""

from __future__ import annotations

import json
import time

import pytest

from shoal.gateway.grammar import relax as relax_module
from shoal.gateway.grammar.fit import _is_wrong
from shoal.gateway.grammar.relax import UNKNOWN, LeftOut, relax

TEXT = {"type": "string"}
ANY = {"type": "object"}


def without(*banned):
    """A judge that refuses schemas in which any of ``banned`` is a key, or a value."""

    def refused(schema):
        said = json.dumps(schema)
        return next((f"{word} is refused" for word in banned if json.dumps(word) in said), "")

    return refused


def left(schema, *banned, least=ANY):
    found = relax(schema, without(*banned), least=least)
    return found.schema, [one.path for one in found.left_out]


def fields(**properties):
    return {"type": "object", "properties": properties}


def test_the_refused_keyword_is_left_out_and_nothing_else():
    schema = fields(a={"type": "string", "pattern": "(?=x)", "maxLength": 5}, b=TEXT) | {"required": ["a"]}
    kept, left_out = left(schema, "pattern")
    assert kept == fields(a={"type": "string", "maxLength": 5}, b=TEXT) | {"required": ["a"]}
    assert left_out == ["properties.a.pattern"]


def test_each_of_several_is_found():
    schema = fields(
        a={"type": "array", "items": {"not": TEXT, "type": "number"}, "uniqueItems": True},
        b={"anyOf": [TEXT, {"format": "odd"}]},
    )
    kept, left_out = left(schema, "not", "uniqueItems", "odd")
    assert kept == fields(a={"type": "array", "items": {"type": "number"}}, b={"anyOf": [TEXT, {}]})
    assert set(left_out) == {
        "properties.a.items.not",
        "properties.a.uniqueItems",
        "properties.b.anyOf.1.format",
    }


def test_what_is_about_the_rest_goes_with_it_or_more_would_be_forbidden():
    schema = ANY | {"patternProperties": {"(?=a)": TEXT}, "additionalProperties": False, "minProperties": 1}
    assert left(schema, "(?=a)") == (ANY | {"minProperties": 1}, ["patternProperties"])
    schema = ANY | {"if": {"not": {}}, "then": {"required": ["a"]}, "else": {"required": ["b"]}}
    assert left(schema, "not") == (ANY, ["if"])


def test_what_must_not_match_is_never_relaxed_itself():
    schema = fields(a={"not": {"type": "string", "pattern": "(?=x)"}})
    assert left(schema, "pattern") == (fields(a={}), ["properties.a.not"])


def test_one_of_several_becomes_any_of_them():
    schema = fields(a={"oneOf": [TEXT, {"type": "string", "maxLength": 3}]})
    kept, left_out = left(schema, "oneOf")
    assert kept == fields(a={"anyOf": [TEXT, {"type": "string", "maxLength": 3}]})
    assert left_out == ["properties.a.oneOf"]


def test_a_definition_is_relaxed_and_stays_referred_to():
    schema = fields(a={"$ref": "#/$defs/A"}) | {"$defs": {"A": {"type": "array", "uniqueItems": True}}}
    kept, left_out = left(schema, "uniqueItems")
    assert kept == fields(a={"$ref": "#/$defs/A"}) | {"$defs": {"A": {"type": "array"}}}
    assert left_out == ["$defs.A.uniqueItems"]


def test_at_last_any_object_is_left():
    assert left(fields(a=TEXT), "properties") == (ANY, ["properties"])
    assert relax({"properties": 5, "enum": []}, lambda _: "no", least=ANY).schema == ANY


def test_what_says_nothing_costs_nothing():
    kept, left_out = left(fields(a=TEXT | {"description": "odd", "default": "odd", "title": "odd"}), "odd")
    assert kept == fields(a=TEXT)
    assert left_out == []


@pytest.mark.parametrize("bad", [1, 3, 1000])
def test_however_many_are_refused_the_tries_are_bounded(bad):
    tried = 0
    judge = without("bad")

    def refused(schema):
        nonlocal tried
        tried += 1
        return judge(schema)

    schema = fields(**{f"p{i}": TEXT | ({"pattern": "bad"} if i % 1000 < bad else {}) for i in range(1000)})
    found = relax(schema, refused, least=ANY)
    assert tried <= relax_module.TRIES
    assert not judge(found.schema)
    if bad == 1:
        assert tried <= 30
        assert len(found.left_out) == 1


def test_what_is_not_found_out_is_left_out_all_at_once(monkeypatch):
    """Each of the halves of halves copied what was kept: minutes of a thread for a body of some megabytes."""
    looked_at, fit = [], relax_module._Fitting.fit

    def counted(fitting, keywords, kept):
        looked_at.append(len(keywords))
        return fit(fitting, keywords, kept)

    monkeypatch.setattr(relax_module._Fitting, "fit", counted)
    schema = {f"k{i}": i for i in range(8_000)}
    found = relax(schema, lambda one: "" if len(one) <= 4_001 else UNKNOWN, least=ANY)
    assert looked_at == [8_000]
    looked_at.clear()
    assert found.schema == ANY
    assert len(found.left_out) == 8_000
    told = iter(["no", "", *["no", UNKNOWN] * 50])
    found = relax(schema, lambda _: next(told), least=ANY)
    assert len(looked_at) < 40
    assert sum(looked_at) < 4 * len(schema)
    assert len(found.schema) == 4_001
    assert len(found.left_out) == 4_000


def test_a_long_pattern_is_not_compiled_to_find_mistakes_in_it() -> None:
    """36 s of Python's own for 30,000 characters; it is left out as any that cannot be kept to."""
    began = time.thread_time()
    assert not _is_wrong(LeftOut("a.pattern", "(?i:[\u0100-\u8000])" * 3000, "too complex"))
    assert time.thread_time() - began < 5
    assert _is_wrong(LeftOut("a.pattern", "(", "no regex"))
