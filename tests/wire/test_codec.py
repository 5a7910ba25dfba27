"""Which codec a session has: exact where it is free or was promised, else small."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.types import Codec, Format
from shoal.wire.codec import choose_codec, coarsest
from shoal.wire.payload import encoded_bytes


@pytest.mark.parametrize(
    ("link", "bytes_s", "codec"),
    [
        ("loopback", 500e6, "float32"),
        ("gigabit", 110e6, "float32"),
        ("100 megabit", 11e6, "bfloat16"),
        ("10 megabit", 1.1e6, "int8"),
        ("2 megabit", 0.22e6, "int6"),
    ],
)
def test_a_session_of_a_1b_model_over_usual_links(link: str, bytes_s: float, codec: Codec):
    assert choose_codec("bf16", bytes_s, 2048, 4e-3) == codec, link


@given(st.floats(1, 1e12), st.integers(1, 10_000), st.floats(0, 1e3))
def test_fp32_is_exact_on_any_link(bytes_s: float, width: int, step_s: float):
    assert choose_codec("fp32", bytes_s, width, step_s) == "float32"


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_a_link_that_is_not_known_is_taken_for_a_fast_one(format: Format):
    assert choose_codec(format, None, 4096, 1e-6) == "float32"


@given(st.floats(1, 1e12), st.floats(1, 1e12), st.integers(1, 10_000), st.floats(0, 1e3))
def test_a_slower_link_never_takes_more_bytes(one: float, other: float, width: int, step_s: float):
    slow, fast = (choose_codec("int8", bytes_s, width, step_s) for bytes_s in sorted((one, other)))
    assert coarsest((slow, fast)) == slow


@given(st.integers(64, 10_000))
def test_a_coarser_codec_takes_fewer_bytes(width: int):
    sizes = [encoded_bytes(1, width, codec) for codec in get_args(Codec)]
    assert sizes == sorted(sizes, reverse=True)


@given(st.floats(1, 1e12), st.integers(1, 10_000), st.floats(1e-6, 1e3))
def test_int6_is_for_links_that_take_longer_than_the_compute_in_int8_too(
    bytes_s: float, width: int, step_s: float
):
    if choose_codec("bf16", bytes_s, width, step_s) == "int6":
        assert encoded_bytes(1, width, "int8") / bytes_s > step_s


def test_the_longer_a_step_computes_the_more_exact_it_may_travel():
    assert choose_codec("bf16", 1e6, 2048, 1e-3) == "int6"
    assert choose_codec("bf16", 5e6, 2048, 0) == "int8", "what a step takes is not known"
    assert choose_codec("bf16", 5e6, 2048, 1e-3) == "int8"
    assert choose_codec("bf16", 5e6, 2048, 1e-2) == "bfloat16"
    assert choose_codec("bf16", 5e6, 2048, 1e-1) == "float32"


def test_of_several_links_the_slowest_has_its_way():
    assert coarsest(["int8", "int6", "float32"]) == "int6"
    assert coarsest(["float32", "int8", "bfloat16"]) == "int8"
    assert coarsest(["float32", "bfloat16"]) == "bfloat16"
    assert coarsest([]) == "float32"


def test_the_bytes_of_each_codec():
    assert encoded_bytes(3, 100, "float32") == 1200
    assert encoded_bytes(3, 100, "bfloat16") == 600
    assert encoded_bytes(3, 100, "int8") == 3 * (100 + 2 * 4)
    assert encoded_bytes(3, 128, "int8") == 3 * (128 + 2 * 4)
    assert encoded_bytes(3, 100, "int6") == 3 * (2 * 3 + 2 * 2 + 75)
    assert encoded_bytes(3, 256, "int6") == 3 * (3 * 3 + 4 * 2 + 192)
    assert encoded_bytes(1, 4096, "int6") * 8 / 4096 == pytest.approx(6.53, abs=0.01)
