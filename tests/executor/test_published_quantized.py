"""Quantised checkpoints served by their own integers, where they are integers in groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal.executor.kernels import c_kernels
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.floats import read_float32
from shoal.models.checkpoint.published import grouping_of, read_grouped
from shoal.models.store.store import ModelStore
from shoal.types import Kernels
from tests.models.published import PUBLISHED, publish

from .test_published import logits

GROUPED = {
    "gptq4": (4, 32, False),
    "gptq4-rows-v2": (4, 64, True),
    "gptq8": (8, 64, False),
    "gptq3": (4, 32, True),
    "gptq2": (4, 32, True),
    "awq": (4, 32, True),
    "awq-rows": (4, 64, True),
    "w4a16": (4, 32, False),
    "w4a16-zeros": (4, 32, True),
    "w8a16": (8, 64, False),
    "w8a16-zeros": (8, 64, True),
    "w3a16": (4, 32, False),
    "w8a8": (8, 64, False),
    "w8a8-zero": (8, 64, True),
    "bnb8": (8, 64, False),
}
"""Bits, columns of a group and whether it has minima, of weights ``[128, 64]``; the others have no groups."""
WITH: tuple[Kernels, ...] = ("torch",) if c_kernels.library() is None else ("auto", "torch")


@pytest.mark.parametrize("name", PUBLISHED)
def test_integers_in_groups_mean_what_the_tensors_mean(name: str, tmp_path: Path) -> None:
    published, _ = publish(tmp_path, PUBLISHED[name], num_hidden_layers=1)
    entry = open_checkpoint(published).tensors["model.layers.0.mlp.up_proj.weight"]
    grouping = grouping_of(entry)
    if grouping is None:
        assert name not in GROUPED
        return
    assert (grouping.bits, grouping.group, grouping.minima) == GROUPED[name]
    found = read_grouped(entry)
    assert (found.bits, found.group, found.minima is not None) == GROUPED[name]
    if grouping.halves:
        assert np.array_equal(found.scales, found.scales.astype(np.float16).astype(np.float32))
    expected = read_float32(entry)
    assert np.abs(found.floats() - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["gptq4", "gptq4-act", "gptq8", "awq", "w4a16", "w8a8", "fp8", "nf4"])
def test_three_spans_as_published_are_near_the_dequantised_model(name: str, tmp_path: Path) -> None:
    published, plain = publish(tmp_path, PUBLISHED[name], initializer_range=0.02)  # what the bound is of
    store = ModelStore(tmp_path / "store")
    expected = logits(store.pull(str(plain)), "fp32", tmp_path / "cache")
    for kernels in WITH:
        found = logits(store.pull(str(published)), "published", tmp_path / "cache", kernels)
        assert np.linalg.norm(found - expected) <= 1e-2 * np.linalg.norm(expected), kernels
