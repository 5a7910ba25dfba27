"""Means of updates: right where all are honest, bounded where some are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shoal.errors import RemoteProtocolError, UsageError
from shoal.training.federated.layout import VectorLayout, part_bounds
from shoal.training.federated.means import (
    MEAN_RULES,
    bounded_weights,
    clip_norm,
    mean_fault,
    norm,
    part_radius,
    robust_mean,
    trimmed,
    update_fault,
)
from shoal.training.federated.outer import SharedState, proximal_gradient

NUMBERS = st.floats(-1e6, 1e6, width=32)


@st.composite
def some_updates(draw):
    count, size = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    return [draw(arrays.arrays(np.float32, size, elements=NUMBERS)) for _ in range(count)]


def test_a_vector_has_the_tensors_in_one_order_whatever_order_they_come_in():
    tensors = {"b": np.ones((2, 3), np.float32), "a": np.arange(4, dtype=np.float32)}
    layout = VectorLayout.of(tensors)
    vector = layout.flatten(dict(reversed(tensors.items())))
    assert vector.tolist() == [0, 1, 2, 3, *[1] * 6]
    assert {name: value.tolist() for name, value in layout.unflatten(vector).items()} == {
        name: value.tolist() for name, value in tensors.items()
    }
    assert layout.digest != VectorLayout.of({"a": np.ones(10, np.float32)}).digest
    with pytest.raises(UsageError, match="other names or shapes"):
        layout.flatten({"a": np.ones(4)})
    with pytest.raises(UsageError, match="a vector of"):
        layout.unflatten(np.zeros(9, np.float32))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 70))
def test_parts_cover_the_vector_once_and_are_alike(size, owners):
    bounds = part_bounds(size, owners)
    assert [i for part in bounds for i in range(size)[part]] == list(range(size))
    lengths = [part.stop - part.start for part in bounds]
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=30, deadline=None)
@given(some_updates(), st.sampled_from(MEAN_RULES), st.floats(0.01, 1e5))
def test_no_rule_gives_a_mean_that_its_receivers_would_refuse(updates, rule, radius):
    mean = robust_mean(rule, updates, [1] * len(updates), radius)
    assert mean.dtype == np.float32
    assert mean_fault(mean, len(updates[0]), radius) == ""


@settings(max_examples=30, deadline=None)
@given(some_updates(), st.sampled_from(MEAN_RULES), st.randoms())
def test_the_order_of_members_does_not_matter(updates, rule, chance):
    shuffled = list(updates)
    chance.shuffle(shuffled)
    ones = [1] * len(updates)
    expected = robust_mean(rule, updates, ones, 1e9)
    assert robust_mean(rule, shuffled, ones, 1e9) == pytest.approx(expected, rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("rule", MEAN_RULES)
def test_all_rules_agree_where_all_members_do(rule):
    update = np.array([1, -2, 3], np.float32)
    assert robust_mean(rule, [update] * 5, [1, 2, 3, 4, 5], 10) == pytest.approx(update)


@pytest.mark.parametrize("rule", [rule for rule in MEAN_RULES if rule != "mean"])
def test_a_quarter_of_the_members_does_not_turn_the_mean_round(rule):
    chance = np.random.default_rng(3)
    true = np.ones(50, np.float32)
    honest = [(true + chance.normal(0, 0.3, 50)).astype(np.float32) for _ in range(6)]
    bad = [-8 * true] * 2
    mean = robust_mean(rule, [*honest, *bad], [1] * 8, norm(true) * 8)
    assert norm(mean - true) < 0.5 * norm(true)
    plain = robust_mean("mean", [*honest, *bad], [1] * 8, norm(true) * 8)
    assert norm(plain - true) > norm(true)  # which is why there are others


def test_a_mean_is_weighted_by_examples_and_nobody_weighs_more_than_four():
    assert bounded_weights([1, 1, 1, 1000]) == [1 / 7, 1 / 7, 1 / 7, 4 / 7]
    assert bounded_weights([0, 0]) == [0.5, 0.5]
    assert bounded_weights([20, 1 << 40]) == [0.2, 0.8]  # of two, the other one is the measure
    assert bounded_weights([10, 20, 1 << 40, 1 << 40]) == [
        10 / 190,
        20 / 190,
        80 / 190,
        80 / 190,
    ]  # bounded by 80
    mean = robust_mean("mean", [np.zeros(1, np.float32), np.ones(1, np.float32)], [1, 3], 10)
    assert mean == pytest.approx([0.75])


def test_what_no_honest_member_sends_is_left_out_and_said_why():
    good = np.ones(4, np.float32)
    assert update_fault(good, 4, 2.0) == ""
    assert "3 numbers and not 4" in update_fault(good[:3], 4, 2.0)
    assert "NaN" in update_fault(np.array([1, np.nan, 1, 1], np.float32), 4, 2.0)
    assert "NaN or infinite" in update_fault(np.array([1, np.inf, 1, 1], np.float32), 4, 2.0)
    assert "norm is" in update_fault(np.full(4, 3e38, np.float32), 4, 2.0)
    assert norm(clip_norm(good, 0.5)) == pytest.approx(0.5)
    assert clip_norm(good, 2.0) is good


def test_an_owner_that_says_what_no_mean_is_is_found_out():
    assert mean_fault(np.ones(4, np.float32), 4, 2.0) == ""
    assert "norm of 6" in mean_fault(np.full(4, 3, np.float32), 4, 2.0)
    assert "NaN" in mean_fault(np.full(4, np.nan, np.float32), 4, 2.0)
    assert "numbers" in mean_fault(np.ones(3, np.float32), 4, 2.0)


def test_parts_have_norms_as_long_as_the_whole():
    whole = np.ones(100, np.float32)
    parts = [part_radius(10.0, part.stop - part.start, 100) for part in part_bounds(100, 3)]
    assert sum(part**2 for part in parts) == pytest.approx(norm(whole) ** 2)
    assert [trimmed(count) for count in (1, 2, 3, 4, 8)] == [0, 0, 0, 1, 2]


def test_the_outer_step_is_that_of_torch_and_without_momentum_it_is_fedavg():
    weights = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = torch.optim.SGD([weights], lr=0.7, momentum=0.9, nesterov=True)
    state = SharedState.fresh(weights.detach().numpy().copy())
    for mean in ([0.1, 0.2, -0.3], [0.0, 0.5, 0.1], [-0.2, 0.2, 0.2]):
        weights.grad = -torch.tensor(mean)
        optimizer.step()
        state = state.step(np.array(mean, np.float32), 0.7, 0.9)
    assert state.weights == pytest.approx(weights.detach().numpy(), rel=1e-6)
    begun = SharedState.fresh(np.zeros(2, np.float32))
    assert begun.step(np.array([1, 2], np.float32), 1.0, 0.0).weights.tolist() == [1, 2]


def test_a_state_travels_bit_for_bit_and_a_damaged_one_is_refused():
    state = SharedState(np.array([1, 2], np.float32), np.array([3, 4], np.float32))
    assert SharedState.read(state.payload(), 2).digest == state.digest
    with pytest.raises(RemoteProtocolError, match="16 bytes, not 24"):
        SharedState.read(state.payload(), 3)
    with pytest.raises(RemoteProtocolError, match="NaN"):
        SharedState.read(np.full(4, np.nan, "<f4").tobytes(), 2)


def test_the_proximal_term_is_the_gradient_of_its_loss():
    begin = torch.tensor([1.0, 2.0])
    weights = torch.tensor([1.5, -1.0], requires_grad=True)
    (0.3 / 2 * (weights - begin).square().sum()).backward()
    assert weights.grad is not None
    found = proximal_gradient(weights.detach().numpy(), begin.numpy(), 0.3)
    assert found == pytest.approx(weights.grad.numpy())
