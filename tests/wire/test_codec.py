"""Which codec a hop sends in: exact where it is free or was promised, else small."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.types import Codec, Format
from shoal.wire.codec import CodecChooser, choose_codec
from shoal.wire.payload import encoded_bytes

SIZE: dict[Codec, int] = {"float32": 4, "bfloat16": 2, "int8": 1}


@pytest.mark.parametrize(
    ("link", "bytes_s", "codec"),
    [
        ("loopback", 500e6, "float32"),
        ("gigabit", 110e6, "float32"),
        ("100 megabit", 11e6, "bfloat16"),
        ("10 megabit", 1.1e6, "int8"),
    ],
)
def test_a_decode_step_of_a_1b_model_over_usual_links(link: str, bytes_s: float, codec: Codec):
    assert choose_codec("bf16", bytes_s, 1, 2048, 4000) == codec, link


@given(st.floats(1, 1e12), st.integers(1, 1000), st.integers(1, 10_000), st.floats(1, 1e9))
def test_fp32_is_exact_on_any_link(bytes_s: float, rows: int, width: int, compute_us: float):
    assert choose_codec("fp32", bytes_s, rows, width, compute_us) == "float32"


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_a_link_that_was_never_timed_is_taken_for_a_fast_one(format: Format):
    assert choose_codec(format, None, 512, 4096, 1) == "float32"


@given(
    st.floats(1, 1e12), st.floats(1, 1e12), st.integers(1, 1000), st.integers(1, 10_000), st.floats(1, 1e9)
)
def test_a_slower_link_never_takes_more_bytes(one: float, other: float, rows: int, width: int, us: float):
    slow, fast = (choose_codec("int8", bytes_s, rows, width, us) for bytes_s in sorted((one, other)))
    assert SIZE[slow] <= SIZE[fast]


def test_a_prefill_and_a_decode_step_are_judged_by_their_own_compute():
    chooser = CodecChooser("bf16")
    for _ in range(20):
        chooser.note(1, 10_000)
        chooser.note(100, 10_000)
    assert chooser.choose(20e6, 1, 2048) == "float32"
    assert chooser.choose(20e6, 100, 2048) == "int8"


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_what_is_pinned_is_taken(codec: Codec):
    assert CodecChooser("fp32", codec).choose(1.0, 1, 64) == codec


def test_the_bytes_of_each_codec():
    assert encoded_bytes(3, 100, "float32") == 1200
    assert encoded_bytes(3, 100, "bfloat16") == 600
    assert encoded_bytes(3, 100, "int8") == 3 * (100 + 2 * 4)
    assert encoded_bytes(3, 128, "int8") == 3 * (128 + 2 * 4)
