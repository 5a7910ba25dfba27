"""Decoupled momentum: what is taken out and sent, what is refused, and which way all go."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.training.federated.demo.coefficients import (
    Coefficients,
    coefficient_bytes,
    largest_of,
    read_coefficients,
)
from shoal.training.federated.demo.direction import DemoTerms, joint_direction
from shoal.training.federated.demo.momentum import DecoupledMomentum
from shoal.training.federated.demo.transform import (
    CHUNK,
    SIDE,
    from_frequencies,
    to_chunks,
    to_frequencies,
)
from shoal.training.federated.int8 import int8_bytes, pack_int8, unpack_int8
from shoal.types import PeerId

SIZE, KEPT = 9000, 16
A, B, C = (PeerId(name) for name in "abc")


def vector(seed, size=SIZE):
    return np.random.default_rng(seed).normal(0, 1, size).astype(np.float32)


def taken(seed=0, times=1.0):
    return DecoupledMomentum(SIZE, 0.9, KEPT).extract(np.float32(times) * vector(seed))


def test_the_transform_is_the_cosine_transform_and_keeps_the_norm():
    chunks = to_chunks(vector(0))
    assert chunks.shape == (3, CHUNK)
    found = to_frequencies(chunks)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(chunks), rel=1e-5)
    assert from_frequencies(found) == pytest.approx(chunks, abs=1e-5)
    place = (2 * np.arange(SIDE) + 1) * np.pi / (2 * SIDE)
    by_definition = (chunks[0].reshape(SIDE, SIDE) * np.outer(np.cos(3 * place), np.cos(5 * place))).sum() * (
        2 / SIDE
    )
    assert found[0, 3 * SIDE + 5] == pytest.approx(by_definition, abs=1e-4)


def test_what_is_not_sent_stays_and_is_sent_when_it_has_grown():
    gradient = vector(1)
    momentum = DecoupledMomentum(SIZE, 0.5, KEPT)
    sent = momentum.extract(gradient)
    assert momentum.held + from_frequencies(sent.dense()).reshape(-1)[:SIZE] == pytest.approx(
        gradient, abs=1e-4
    )
    again = momentum.extract(np.zeros(SIZE, np.float32))
    # The next largest, which have decayed once.
    assert np.abs(again.dense()).max() < np.abs(sent.dense()).max()
    assert not (again.dense().astype(bool) & sent.dense().astype(bool)).sum() > again.values.size // 2
    before = momentum.held.copy()
    momentum.put_back(again)
    assert np.linalg.norm(momentum.held) > np.linalg.norm(before)


def test_a_member_goes_on_with_the_momentum_that_it_kept():
    one = DecoupledMomentum(SIZE, 0.5, KEPT)
    one.extract(vector(1))
    other = DecoupledMomentum(SIZE, 0.5, KEPT, one.held.copy())
    assert one.extract(vector(2)).payload() == other.extract(vector(2)).payload()


def test_coefficients_travel_whole_in_36_bytes_a_chunk():
    sent = taken()
    payload = sent.payload()
    assert len(payload) == coefficient_bytes(SIZE, KEPT) == 3 * 36
    read = read_coefficients(payload, SIZE, KEPT)
    assert isinstance(read, Coefficients)
    assert (read.dense() == sent.dense()).all()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda c: c.payload()[:-1], "107 bytes and not 108"),
        (lambda c: Coefficients(c.scales * np.float32(np.nan), c.places, c.values).payload(), "NaN"),
        (lambda c: Coefficients(-c.scales, c.places, c.values).payload(), "below zero"),
        (lambda c: Coefficients(c.scales, c.places[:, ::-1], c.values).payload(), "do not rise"),
        (lambda c: Coefficients(c.scales, c.places * 0, c.values).payload(), "do not rise"),
    ],
)
def test_coefficients_that_cannot_be_are_refused_by_name(spoil, why):
    refused = read_coefficients(spoil(taken()), SIZE, KEPT)
    assert isinstance(refused, str)
    assert why in refused


@given(st.binary(max_size=coefficient_bytes(SIZE, 2)))
def test_whatever_bytes_come_they_are_coefficients_or_a_reason(payload):
    padded = payload.ljust(coefficient_bytes(SIZE, 2), b"\1")
    read = read_coefficients(padded, SIZE, 2)
    if isinstance(read, Coefficients):
        signs = joint_direction({A: read, B: taken()}, SIZE).signs
        assert set(np.unique(signs)) <= {-1, 0, 1}
    else:
        assert read


def test_all_go_against_the_sum_of_what_was_sent():
    sent = {A: taken(1), B: taken(2)}
    direction = joint_direction(sent, SIZE)
    total = sum(from_frequencies(one.dense()) for one in sent.values()).reshape(-1)[:SIZE]
    clear = np.abs(total) > 0.01 * np.abs(total).max()
    assert (direction.signs[clear] == np.sign(total)[clear]).all()
    assert (direction.move(0.5) == np.float32(-0.5) * direction.signs).all()


def test_the_same_bits_come_out_on_every_machine():
    """Of numbers that no table of a machine has made; a change here makes members of two releases part."""
    rows = np.arange(3)[:, None]
    places = (np.arange(KEPT) * 251 + rows).astype(np.uint16)
    values = ((np.arange(KEPT) * 37 + 11 * rows) % 255 - 127).astype(np.int8)
    sent = Coefficients(np.array([0.5, 3.0, 1e-20], np.float32), places, values)
    other = Coefficients(np.array([0.25, 1.0, 1e-19], np.float32), (places + 7).astype(np.uint16), -values)
    signs = joint_direction({A: sent, B: other}, SIZE).signs
    assert sha256(signs.tobytes()).hexdigest()[:16] == "db641b077e3d1d36"


def test_who_is_far_louder_than_others_is_left_out_and_who_is_louder_counts_no_more_than_twice():
    quiet = {A: taken(1), B: taken(2), C: taken(3)}
    loud = joint_direction(quiet | {C: taken(3, 1e30)}, SIZE)
    assert "norm of its coefficients" in loud.left_out[C]
    assert (loud.signs == joint_direction({A: quiet[A], B: quiet[B]}, SIZE).signs).all()
    # Of two, the quieter one is the measure.
    pair = joint_direction({A: taken(1), B: taken(2, 1e9)}, SIZE)
    assert list(pair.left_out) == [B]
    assert (pair.signs == joint_direction({A: quiet[A]}, SIZE).signs).all()
    # Seven times as loud is heard as twice as loud: the others together go their way all the same.
    same = {PeerId(f"p{i}"): taken(1) for i in range(4)}
    bold = joint_direction(same | {C: taken(1, -7.0)}, SIZE)
    assert not bold.left_out
    assert (bold.signs == joint_direction(same, SIZE).signs).all()


def test_without_gradients_nothing_moves():
    still = DecoupledMomentum(SIZE, 0.9, KEPT).extract(np.zeros(SIZE, np.float32))
    assert not joint_direction({A: still, B: still}, SIZE).signs.any()
    assert not joint_direction({}, SIZE).signs.any()


def test_the_rate_rises_and_falls():
    terms = DemoTerms(rate=0.1, warmup=2)
    rates = [terms.rate_of(round, 6) for round in range(6)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025])
    assert DemoTerms(rate=0.1, warmup=9).rate_of(5, 6) == pytest.approx(0.1 * 6 / 9)


def test_largest_are_the_largest_whatever_their_sign():
    frequencies = np.zeros((1, CHUNK), np.float32)
    frequencies[0, [5, 70, 900]] = [-3, 2, 0.5]
    found = largest_of(frequencies, 2)
    assert found.places.tolist() == [[5, 70]]
    assert found.dense()[0, [5, 70, 900]] == pytest.approx([-3, 2, 0], abs=3 / 14)


@pytest.mark.parametrize("size", [0, 1, 256, 257, 5000])
def test_int8_is_a_byte_a_number_and_near_to_it(size):
    values = vector(4, size)
    payload = pack_int8(values)
    assert len(payload) == int8_bytes(size) <= size * 1.02 + 4
    assert unpack_int8(payload, size) == pytest.approx(values, abs=float(np.abs(values).max(initial=0)) / 250)
    assert unpack_int8(payload + b"x", size).size == 0


def test_what_is_no_number_is_none_after_int8_either():
    values = vector(5, 300)
    values[7] = np.inf
    read = unpack_int8(pack_int8(values), 300)
    assert np.isnan(read[:256]).all()
    assert np.isfinite(read[256:]).all()
