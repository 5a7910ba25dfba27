"""Rotary positions: at which frequency each pair of a head's elements turns, as transformers computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shoal.executor.arrays import Floats, empty
from shoal.models.checkpoint.llama_config import RopeParameters


@dataclass(frozen=True, slots=True)
class Rope:
    """Angles are position x frequency (Su et al., "RoFormer", 2021)."""

    frequencies: Floats
    """``[rotary / 2]``"""
    scale: float
    """What cosines and sines are multiplied by (YaRN)."""


def rope_of(parameters: RopeParameters) -> Rope:
    """The frequencies of one kind of blocks."""
    wavelengths = powers(parameters.rope_theta, parameters.rotary)
    frequencies = empty(wavelengths.shape)
    frequencies[...] = scaled(wavelengths, parameters)
    return Rope(frequencies, attention_scale(parameters))


def powers(theta: float, rotary: int) -> Floats:
    """``theta ** (2 i / rotary)`` for each pair of elements, the nearest float32.

    Torch's own power is now and then off by its last bit, and on other CPUs by another one: this is the same
    everywhere.
    """
    exponents = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
    return (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)


def scaled(wavelengths: Floats, parameters: RopeParameters) -> Floats:
    """Frequencies from what :func:`powers` gives, in the order of operations of transformers, bit for bit."""
    p = parameters
    frequencies = np.float32(1) / wavelengths
    match p.rope_type:
        case "default":
            return frequencies
        case "linear":
            return frequencies / np.float32(p.factor)
        case "llama3":
            return _llama3(frequencies, p)
        case "yarn":
            return _yarn(wavelengths, p)


def attention_scale(p: RopeParameters) -> float:
    """What cosines and sines are multiplied by."""
    if p.rope_type != "yarn":
        return 1.0
    if p.attention_factor is not None:
        return float(p.attention_factor)
    if p.mscale and p.mscale_all_dim:
        return _mscale(p.factor, p.mscale) / _mscale(p.factor, p.mscale_all_dim)
    return _mscale(p.factor, 1)


def _mscale(factor: float, by: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0


def _llama3(frequencies: Floats, p: RopeParameters) -> Floats:
    """Long wavelengths are stretched, short ones stay, and those between are mixed (Llama 3.1)."""
    one = np.float32(1)
    lengths = one / frequencies * np.float32(2 * math.pi)  # torch divides a number by a tensor in two steps
    longest = np.float32(p.original_max_position_embeddings / p.low_freq_factor)
    shortest = np.float32(p.original_max_position_embeddings / p.high_freq_factor)
    factor, low = np.float32(p.factor), np.float32(p.low_freq_factor)
    found = np.where(lengths > longest, frequencies / factor, frequencies)
    smooth = one / lengths * np.float32(p.original_max_position_embeddings) - low
    smooth /= np.float32(p.high_freq_factor - p.low_freq_factor)
    mixed = (one - smooth) * found / factor + smooth * found
    return np.where(~(lengths < shortest) & ~(lengths > longest), mixed, found)


def _yarn(wavelengths: Floats, p: RopeParameters) -> Floats:
    """From unchanged to stretched along a ramp (Peng et al., "YaRN", 2023)."""

    def dimension(rotations: float) -> float:
        turned = math.log(p.original_max_position_embeddings / (rotations * 2 * math.pi))
        return p.rotary * turned / (2 * math.log(p.rope_theta))

    low, high = dimension(p.beta_fast), dimension(p.beta_slow)
    if p.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, p.rotary - 1)
    if low == high:
        high += 0.001  # as transformers: no division by zero
    ramp = (np.arange(p.rotary // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    unchanged = np.float32(1) - np.minimum(np.maximum(ramp, np.float32(0)), np.float32(1))
    stretched = np.float32(1) / (np.float32(p.factor) * wavelengths)
    kept = np.float32(1) / wavelengths * unchanged
    return np.add(stretched * (np.float32(1) - unchanged), kept, dtype=np.float32)
