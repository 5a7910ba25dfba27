"""The ends refuse what would otherwise fail deep inside of torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shoal.errors import PromptTooLong, StepFailed, UsageError
from shoal.models.build.ends import EndsModule
from shoal.models.build.load import load_ends_module
from shoal.models.store.local_model import LocalModel
from shoal.testing.checkpoints import VOCAB


@pytest.fixture
def ends(local: Callable[[str], LocalModel]) -> EndsModule:
    return load_ends_module(local("gpt2"))


@pytest.mark.parametrize("ids", [[], [-1], [VOCAB], [0, 2**63 - 1]], ids=str)
def test_tokens_outside_of_the_vocabulary(ends: EndsModule, ids: list[int]) -> None:
    with pytest.raises(UsageError):
        ends.embed(ids, 0)


@pytest.mark.parametrize(("count", "position"), [(257, 0), (1, 256), (2, 255), (1, -1)])
def test_positions_beyond_the_context(ends: EndsModule, count: int, position: int) -> None:
    with pytest.raises(PromptTooLong):
        ends.embed([1] * count, position)


def test_the_last_position_of_the_context(ends: EndsModule) -> None:
    assert ends.embed([1], 255).shape == (1, 1, 64)


def test_a_learned_position_is_part_of_the_embedding(ends: EndsModule) -> None:
    assert torch.equal(ends.embed([5, 5], 0)[:, 1:], ends.embed([5], 1))
    assert not torch.equal(ends.embed([5], 0), ends.embed([5], 1))


@pytest.mark.parametrize("shape", [(1, 64), (2, 1, 64), (1, 0, 64), (1, 1, 63)])
def test_hidden_states_of_another_shape(ends: EndsModule, shape: tuple[int, ...]) -> None:
    with pytest.raises(StepFailed):
        ends.head(torch.zeros(shape))


def test_hidden_states_of_another_dtype(ends: EndsModule) -> None:
    with pytest.raises(StepFailed):
        ends.head(torch.zeros((1, 1, 64), dtype=torch.bfloat16))
