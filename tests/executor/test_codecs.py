"""Hidden states survive each codec within its bounds, and bytes that are none are refused."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shoal.errors import StepFailed
from shoal.executor import codecs
from shoal.executor.arrays import Floats, narrow, widen
from shoal.executor.codecs import TINY, decode, encode
from shoal.executor.kernels.c_kernels import library
from shoal.types import Codec
from shoal.wire.payload import INT8_BLOCK, encoded_bytes

CODECS: tuple[Codec, ...] = ("float32", "bfloat16", "int8")
EVERY = pytest.mark.parametrize("codec", CODECS)

shapes = st.tuples(st.integers(1, 5), st.integers(1, 200))
values = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
arrays = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=values))
untimed = settings(deadline=None)


@pytest.fixture(autouse=True, scope="module", params=["kernels", "numpy"])
def by(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything by the kernels, and by what stands in for them."""
    if request.param == "kernels" and library() is None:
        pytest.skip("the C kernels are not built")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(codecs, "library", lambda: None)
        yield


def passed(hidden: Floats, codec: Codec) -> Floats:
    return decode(encode(hidden, codec), codec, *hidden.shape)


def largest_of_blocks(hidden: Floats) -> Floats:
    """For each element, the largest of the block that it shares a scale with."""
    blocks = [hidden[:, at : at + INT8_BLOCK] for at in range(0, hidden.shape[1], INT8_BLOCK)]
    return np.concatenate([np.broadcast_to(np.abs(b).max(1, keepdims=True), b.shape) for b in blocks], 1)


@untimed
@given(arrays, st.sampled_from(CODECS))
def test_the_size_is_what_the_wire_expects(hidden: Floats, codec: Codec):
    assert len(encode(hidden, codec)) == encoded_bytes(*hidden.shape, codec)


@untimed
@given(arrays)
def test_float32_is_exact(hidden: Floats):
    assert np.array_equal(passed(hidden, "float32"), hidden)


@untimed
@given(arrays)
def test_bfloat16_rounds_as_weights_are(hidden: Floats):
    assert np.array_equal(passed(hidden, "bfloat16"), widen(narrow(hidden)))


@untimed
@given(arrays)
def test_int8_is_within_half_a_step_of_its_block(hidden: Floats):
    error = np.abs(passed(hidden, "int8").astype(np.float64) - hidden)
    assert bool((error <= largest_of_blocks(hidden).astype(np.float64) / 254 * 1.001 + TINY).all())


@untimed
@given(arrays, st.integers(0, 199))
def test_an_outlier_coarsens_no_block_but_its_own(hidden: Floats, place: int):
    column = place % hidden.shape[1]
    loud = hidden.copy()
    loud[0, column] = 3e32
    block = column // INT8_BLOCK * INT8_BLOCK
    others = np.ones_like(hidden, np.bool_)
    others[0, block : block + INT8_BLOCK] = False
    assert np.array_equal(passed(loud, "int8")[others], passed(hidden, "int8")[others])


@EVERY
@untimed
@given(hidden=arrays)
def test_what_was_decoded_encodes_to_the_same_again(codec: Codec, hidden: Floats):
    once = passed(hidden, codec)
    np.testing.assert_allclose(passed(once, codec), once, rtol=1e-5, atol=TINY)


@EVERY
def test_a_row_is_encoded_alike_alone_and_among_others(codec: Codec):
    hidden = np.random.default_rng(1).standard_normal((8, 100), np.float32)
    assert np.array_equal(passed(hidden, codec)[3:4], passed(hidden[3:4], codec))


@EVERY
def test_no_rows_are_no_bytes(codec: Codec):
    assert encode(np.empty((0, 64), np.float32), codec) == b""
    assert decode(b"", codec, 0, 64).shape == (0, 64)


@EVERY
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 99, 150])
def test_what_is_not_finite_is_not_sent(codec: Codec, value: float, place: int):
    hidden = np.ones((2, 100), np.float32)
    hidden.reshape(-1)[place] = value
    with pytest.raises(StepFailed, match="not finite"):
        encode(hidden, codec)


def test_what_would_overflow_when_rounded_is_not_sent():
    with pytest.raises(StepFailed):
        encode(np.full((1, 4), np.finfo(np.float32).max), "bfloat16")


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, 3e38])
def test_an_impossible_scale_is_refused(scale: float):
    payload = np.float32([1.0, scale]).tobytes() + bytes(100)
    with pytest.raises(StepFailed, match="arrived"):
        decode(payload, "int8", 1, 100)


@EVERY
@untimed
@given(data=st.binary(min_size=1600, max_size=1600))
def test_any_bytes_become_finite_numbers_or_are_refused(codec: Codec, data: bytes):
    payload = data[: encoded_bytes(4, 100, codec)]
    try:
        hidden = decode(payload, codec, 4, 100)
    except StepFailed:
        return
    assert hidden.shape == (4, 100)
    assert hidden.dtype == np.float32
    assert np.isfinite(hidden).all()


@EVERY
def test_bytes_of_another_size_are_refused(codec: Codec):
    with pytest.raises(StepFailed, match="bytes"):
        decode(bytes(99), codec, 1, 100)


@EVERY
@untimed
@given(hidden=arrays)
def test_what_stands_in_for_the_kernels_gives_and_reads_their_bits(codec: Codec, hidden: Floats):
    """Whichever of the two runs here, against numpy: for numpy itself this says nothing."""
    sent = encode(hidden, codec)
    assert codecs._encode_with_numpy(hidden, codec) == sent
    received = codecs._decode_with_numpy(sent, codec, *hidden.shape)
    assert np.array_equal(decode(sent, codec, *hidden.shape), received)
