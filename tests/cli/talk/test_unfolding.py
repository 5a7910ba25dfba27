"""Markdown that comes in pieces: what is shown for good is never shown otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it.token import Token

from shoal.cli.chat.unfolding import PARSER, Unfolding

TEXT = """\
# Fish

They swim.
In shoals.

- one
- two

  still two
- three

| a | b |
|---|---|
| 1 | 2 |

```python
def swim():

    return "# not a heading"
```
1. first

2. second

Setext
======
> quoted

The end <b>of it</b>."""


def blocks(text: str) -> list[tuple[str, str, str]]:
    return [(token.type, token.tag, token.content) for token in PARSER.parse(text)]


def unfolded(text: str, size: int) -> tuple[list[str], str]:
    unfolding = Unfolding()
    pieces = [unfolding.push(text[i : i + size]) for i in range(0, len(text), size)]
    return [piece for piece in pieces if piece], unfolding.rest


@pytest.mark.parametrize("size", [1, 3, 7, 50, 1000])
def test_the_blocks_are_those_of_the_whole_text(size: int) -> None:
    done, rest = unfolded(TEXT, size)
    assert [block for piece in (*done, rest) for block in blocks(piece)] == blocks(TEXT)


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_no_more_is_held_back_than_may_change(size: int) -> None:
    done, rest = unfolded(TEXT, size)
    assert len(done) > 3
    assert rest == "> quoted\n\nThe end <b>of it</b>."  # a line may still make it go on


def test_a_block_that_may_go_on_is_held_back() -> None:
    unfolding = Unfolding()
    assert unfolding.push("```\na\n\nb\n") == ""
    assert unfolding.push("```\n") == ""
    assert unfolding.push("After.\n") == "```\na\n\nb\n```"
    assert unfolding.rest == "After.\n"


def test_a_line_that_is_not_whole_decides_nothing() -> None:
    unfolding = Unfolding()
    unfolding.push("1. a\n\n2")
    assert unfolding.push(". b\n") == ""


def test_tags_are_text() -> None:
    kinds = {token.type for token in inner(PARSER.parse("<think>why</think> <b>x</b>\n\n<div>\ny\n</div>"))}
    assert not {"html_inline", "html_block"} & kinds


def inner(tokens: list[Token]) -> list[Token]:
    return [inside for token in tokens for inside in (token, *(token.children or []))]


@given(st.text(alphabet="ab#-*`>1.|\n =", max_size=60), st.integers(1, 7))
def test_no_letter_is_lost_or_doubled(text: str, size: int) -> None:
    done, rest = unfolded(text, size)
    assert "\n".join((*done, rest)) == text
