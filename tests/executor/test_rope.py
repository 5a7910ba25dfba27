"""Frequencies of rotary positions are those of transformers, but for the last bit of a power."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shoal.executor.rope import attention_scale, powers, rope_of, scaled
from shoal.models.checkpoint.llama_config import RopeParameters, RopeType

THETAS = (10000.0, 500000.0, 1000000)
ROTARY = (16, 64, 96, 128)


def every(rope_type: RopeType) -> Iterator[RopeParameters]:
    """Parameters as they are found in the field, and between and beyond."""
    for theta, rotary, factor, original in itertools.product(THETAS, ROTARY, (1.5, 8, 32.0), (256, 8192)):
        common = {"rope_type": rope_type, "rope_theta": theta, "rotary": rotary, "factor": factor}
        if rope_type in ("default", "linear"):
            yield RopeParameters(**common)
            continue
        common["original_max_position_embeddings"] = original
        if rope_type == "llama3":
            yield RopeParameters(**common, low_freq_factor=1.0, high_freq_factor=4.0)
            yield RopeParameters(**common, low_freq_factor=0.7, high_freq_factor=3)
            continue
        yield RopeParameters(**common)
        yield RopeParameters(**common, truncate=False, beta_fast=24, beta_slow=2)
        yield RopeParameters(**common, mscale=1.0, mscale_all_dim=0.5)
        yield RopeParameters(**common, attention_factor=1.25)


def by_transformers(p: RopeParameters) -> tuple[np.ndarray, float]:
    """What transformers computes with torch."""
    if p.rope_type == "default":
        return 1.0 / torch_powers(p), 1.0
    names = ("rope_type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor")
    names += ("high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    config = LlamaConfig(hidden_size=p.rotary, num_attention_heads=1, max_position_embeddings=8192)
    config.rope_parameters = {name: getattr(p, name) for name in (*names, "truncate")}
    frequencies, scale = ROPE_INIT_FUNCTIONS[p.rope_type](config, torch.device("cpu"))
    return frequencies.numpy(), scale


def torch_powers(p: RopeParameters) -> np.ndarray:
    exponents = torch.arange(0, p.rotary, 2, dtype=torch.int64).float() / p.rotary
    return (p.rope_theta**exponents).numpy()


@pytest.mark.parametrize("rope_type", ["default", "linear", "llama3", "yarn"])
def test_from_the_same_powers_come_the_same_bits(rope_type: RopeType) -> None:
    for p in every(rope_type):
        frequencies, scale = by_transformers(p)
        assert np.array_equal(scaled(torch_powers(p), p), frequencies), p
        assert attention_scale(p) == scale, p


@pytest.mark.parametrize("rope_type", ["default", "linear", "llama3", "yarn"])
def test_frequencies_are_as_near_as_float32_can_be(rope_type: RopeType) -> None:
    """A bit or two where torch's own power is off by one: far below what a position is rounded by."""
    for p in every(rope_type):
        np.testing.assert_allclose(rope_of(p).frequencies, by_transformers(p)[0], rtol=4e-7)


def test_powers_are_the_nearest_float32() -> None:
    for theta, rotary in itertools.product(THETAS, ROTARY):
        exact = [theta ** float(np.float32(i) / np.float32(rotary)) for i in range(0, rotary, 2)]
        assert np.array_equal(powers(theta, rotary), np.array(exact).astype(np.float32))
