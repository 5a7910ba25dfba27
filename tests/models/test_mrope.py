"""Rotary positions among pictures: those of transformers, in whatever pieces they are computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from shoal.errors import StepFailed
from shoal.models.checkpoint.mrope import check_grids, read_sections, rotary_positions

sides = st.integers(1, 6)


@given(
    texts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    shapes=st.lists(st.tuples(sides, sides), max_size=3),
    cut=st.integers(0, 40),
)
def test_positions_are_those_of_transformers_in_any_piece(
    texts: list[int], shapes: list[tuple[int, int]], cut: int
) -> None:
    kinds: list[int] = []
    grids: list[tuple[int, int, int]] = []
    for words, (high, wide) in zip(texts, shapes, strict=False):
        kinds += [0] * words
        grids.append((len(kinds), high, wide))
        kinds += [1] * (high * wide)
    kinds += [0] * texts[-1]
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    model.get_vision_position_ids = lambda *args, **kw: Qwen2VLModel.get_vision_position_ids(
        model, *args, **kw
    )
    expected, _ = Qwen2VLModel.get_rope_index(
        model,
        torch.zeros(1, len(kinds), dtype=torch.long),
        torch.tensor([kinds]),
        torch.tensor([[1, 2 * high, 2 * wide] for _, high, wide in grids]),
    )
    cut = min(cut, len(kinds))
    early = tuple(grid for grid in grids if grid[0] < cut)
    found = [rotary_positions(0, cut, early), rotary_positions(cut, len(kinds) - cut, tuple(grids))]
    assert np.array_equal(np.concatenate(found), expected[:, 0].T.numpy())


def test_sections_are_those_of_half_a_head() -> None:
    assert read_sections([2, 3, 3], 16) == (2, 3, 3)
    for said in ([2, 3, 4], [2, 6], [-1, 4, 5], [2.0, 3, 3], [True, 3, 4], "233", None):
        assert read_sections(said, 16) is None
    check_grids(None, ())
    check_grids((2, 3, 3), ((0, 2, 2),))
    with pytest.raises(StepFailed, match="no rows of this model have three positions"):
        check_grids(None, ((0, 2, 2),))
