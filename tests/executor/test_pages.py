"""KV memory: what is promised is there, what is given back is used again, and nothing is lost."""

from __future__ import annotations

import re

import pytest

from shoal.errors import Busy
from shoal.executor.kernels.built import NATIVE
from shoal.executor.pages import PAGE, PagePool


def test_a_promise_is_in_whole_pages_and_is_kept() -> None:
    pool = PagePool(10)
    pages = pool.promise(3 * PAGE + 1)
    assert pages.promised == 4
    assert pool.tokens_free == 6 * PAGE
    pages.resize(4 * PAGE)
    assert len(set(pages.numbers)) == 4


def test_more_than_there_is_is_not_promised_and_the_refusal_says_how_much_is_left() -> None:
    pool = PagePool(10)
    pool.promise(8 * PAGE)
    with pytest.raises(Busy) as caught:
        pool.promise(3 * PAGE)
    assert caught.value.tokens_free == 2 * PAGE
    assert pool.tokens_free == 2 * PAGE


def test_a_session_takes_pages_as_it_grows_and_gives_them_back_when_it_rolls_back() -> None:
    pool = PagePool(10)
    pages = pool.promise(10 * PAGE)
    taken: list[int] = []
    for tokens in (1, PAGE, PAGE + 1, 5 * PAGE, 2 * PAGE, 0):
        pages.resize(tokens)
        taken.append(pool.taken)
    assert taken == [1, 1, 2, 5, 2, 0]


def test_a_promise_grows_while_there_is_room_and_never_shrinks() -> None:
    pool = PagePool(10)
    pages = pool.promise(0)
    assert pool.tokens_free == 10 * PAGE
    for tokens, free in ((1, 9), (PAGE, 9), (4 * PAGE, 6), (PAGE, 6)):
        pool.grow(pages, tokens)
        assert pool.tokens_free == free * PAGE
    with pytest.raises(Busy):
        pool.grow(pages, 11 * PAGE)
    assert pages.promised == 4
    pool.forget(pages)
    assert pool.tokens_free == pool.tokens


def test_nobody_grows_beyond_what_was_promised() -> None:
    pages = PagePool(10).promise(PAGE)
    with pytest.raises(Busy):
        pages.resize(PAGE + 1)
    assert not pages.numbers


def test_pages_that_were_used_are_used_again_before_fresh_ones() -> None:
    """So memory grows with the most that was ever held at once, not with the sessions."""
    pool = PagePool(1000)
    seen: set[int] = set()
    for _ in range(2000):
        pages = pool.promise(3 * PAGE)
        pages.resize(3 * PAGE)
        seen |= set(pages.numbers)
        pages.resize(0)
        pool.forget(pages)
    assert len(seen) == 3
    assert pool.tokens_free == pool.tokens
    assert pool.taken == 0


def test_a_page_has_as_many_tokens_as_the_kernels_think() -> None:
    header = (NATIVE / "attention.h").read_text("utf-8")
    assert re.search(r"#define PAGE (\d+)", header)[1] == str(PAGE)  # type: ignore[index]
