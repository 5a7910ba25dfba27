"""What is done to a swarm between homes leaves enough of it for answers to go on."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from shoal.testing.natlab.deeds import HARMED_SHARE, LEFT, choose_deed
from shoal.types import Span

SPANS = {name: Span(0, 3) if number % 2 else Span(3, 6) for number, name in enumerate("abcdefgh")}
PUBLIC, ROUTED = ("a", "b"), ("c", "d", "e", "f", "g", "h")


@given(st.integers(0, 1 << 32), st.sets(st.sampled_from("abcdefgh")))
def test_enough_nodes_of_each_block_and_a_relay_stay(seed: int, harmed: set[str]) -> None:
    deed = choose_deed(Random(seed), SPANS, ROUTED, PUBLIC, harmed)
    if deed is None:
        return
    assert deed.host not in harmed
    if deed.do == "forget":
        assert deed.host in ROUTED
        return
    left = [name for name in SPANS if name not in harmed | {deed.host}]
    assert set(left) & set(PUBLIC)
    assert len(harmed) < HARMED_SHARE * len(SPANS)
    assert sum(SPANS[name] == SPANS[deed.host] for name in left) >= LEFT


def test_every_kind_of_deed_and_every_host_has_its_turn() -> None:
    random = Random(1)
    deeds = [choose_deed(random, SPANS, ROUTED, PUBLIC, ()) for _ in range(300)]
    assert {deed.do for deed in deeds if deed} == {"kill", "forget", "offline"}
    assert {deed.host for deed in deeds if deed} == set(SPANS)
