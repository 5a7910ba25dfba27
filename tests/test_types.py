"""The nouns: what a span is, and which blocks a set of spans leaves uncovered."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.types import Exactness, Numerics, PrivateEnds, Span, gaps

spans = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda p: Span(p[0], p[0] + p[1]))


def test_a_span_is_its_start_and_holds_no_end() -> None:
    span = Span(3, 5)
    assert (3 in span, 4 in span, 5 in span, "3" in span) == (True, True, False, False)
    assert len(span) == 2


@pytest.mark.parametrize(("start", "end"), [(0, 0), (5, 3), (-1, 2)])
def test_an_empty_or_backward_span_cannot_be_made(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="start < end"):
        Span(start, end)


@given(spans)
def test_a_span_reads_back_as_it_is_written(span: Span) -> None:
    assert Span.parse(str(span)) == span


@pytest.mark.parametrize("text", ["", "3", ":", "3:", ":5", "5:3", "-1:4", "a:b", "1:2:3", "1.0:2", "0x1:2"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Span.parse(text)


@given(st.lists(spans, max_size=12), st.integers(1, 40), st.integers(0, 39))
def test_gaps_are_exactly_the_blocks_in_no_span(served: list[Span], end: int, start: int) -> None:
    missing = gaps(served, end, start)
    uncovered = [b for b in range(start, end) if not any(b in span for span in served)]
    assert [b for span in missing for b in range(span.start, span.end)] == uncovered
    assert all(left.end < right.start for left, right in itertools.pairwise(missing))


@pytest.mark.parametrize("bits", get_args(Exactness))
def test_numerics_read_back_as_they_are_written_and_admit_their_own(bits: Exactness) -> None:
    numerics = Numerics("int8", "auto", bits)
    assert Numerics.parse(str(numerics)) == numerics
    assert numerics.admits(numerics) and numerics.loose.admits(numerics)
    assert numerics.exact == (bits == "rows")


@pytest.mark.parametrize("text", ["", "n1", "n2/int8/auto/rows", "n1/int9/auto/rows", "n1/int8/auto/rows/"])
def test_what_are_no_numerics_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="FORMAT/KV/BITS"):
        Numerics.parse(text)


def test_other_versions_formats_kinds_of_kv_and_bits_are_other_numerics() -> None:
    ours = Numerics("int8", "auto", "rows")
    near = Numerics("int8", "auto", "torch")
    others = [
        Numerics("int8", "auto", "rows", version="n2"),
        *(Numerics("int4", "auto", "rows"), Numerics("int8", "int8", "rows"), near, None),
    ]
    assert not any(ours.admits(other) for other in others)
    assert [other for other in others if ours.loose.admits(other)] == [near]


def test_private_ends_are_two_numbers_of_blocks_and_give_their_spans() -> None:
    own = PrivateEnds.parse("2:1")
    assert (own, str(own), bool(own)) == (PrivateEnds(2, 1), "2:1", True)
    assert own.spans(6) == [Span(0, 2), Span(5, 6)]
    assert PrivateEnds.parse("0:1").spans(6) == [Span(5, 6)]
    assert not PrivateEnds.parse("0:0") and PrivateEnds().spans(6) == []


@pytest.mark.parametrize("text", ["", "2", ":", "2:", ":2", "-1:2", "a:b", "1:2:3", "1.0:2"])
def test_what_are_no_private_ends_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="FIRST:LAST"):
        PrivateEnds.parse(text)
