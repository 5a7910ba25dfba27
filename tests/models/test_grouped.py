"""Published integers in groups: what a GGUF file's blocks mean, bit for bit, and matrices put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from shoal.errors import BadWeights
from shoal.models.checkpoint.grouped import Bits, GroupedWeights, fits_groups, join_groups
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.gguf.groups import LAYOUTS, gguf_grouping, read_groups

ROWS, COLS = 8, 512


def entry_of(kind: str, raw: np.ndarray, folder: Path, heads: int = 0) -> TensorEntry:
    """A tensor of these blocks in a file."""
    (folder / "x.gguf").write_bytes(b"before" + raw.tobytes() + b"behind")
    return TensorEntry("x", kind, (ROWS, COLS), folder / "x.gguf", 6, raw.size, heads)


def random_blocks(kind: str, seed: int = 0) -> np.ndarray:
    """Any bytes mean something; without some bits no scale is infinite."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return np.random.default_rng(seed).integers(0, 256, (ROWS, COLS // elements * size), np.uint8) & 0xBB


def groups(bits: Bits, group: int, zero: int = 0, minima: bool = False, rows: int = 3) -> GroupedWeights:
    generator = np.random.default_rng(group + zero)
    lowest, highest = (0, 16) if bits == 4 else (-128, 128)
    scales = generator.standard_normal((rows, 128 // group)).astype(np.float16).astype(np.float32)
    return GroupedWeights(
        generator.integers(lowest, highest, (rows, 128)).astype(np.int8),
        scales,
        scales[::-1].copy() if minima else None,
        bits,
        zero,
    )


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("heads", [0, 2])
def test_each_type_has_the_values_that_the_library_reads(kind: str, heads: int, tmp_path: Path) -> None:
    raw = random_blocks(kind)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(np.float32)
    if heads:  # rows 0, 2 and 1, 3 of each head of four turn together
        expected = expected[[0, 2, 1, 3, 4, 6, 5, 7]]
    entry = entry_of(kind, raw, tmp_path, heads)
    found, grouping = read_groups(entry), gguf_grouping(entry)
    assert np.array_equal(found.floats(), expected)
    assert grouping is not None
    assert (grouping.bits, grouping.group) == (found.bits, found.group)
    assert grouping.minima == (found.minima is not None)
    assert np.isfinite(expected).all()
    assert len(np.unique(found.values)) > 3
    if found.bits == 4:
        assert found.values.min() >= 0
        assert found.values.max() <= 15
    with pytest.raises(BadWeights, match="ends within"):
        read_groups(replace(entry, begin=100 + raw.size // 2))


def test_a_minimum_that_drowns_the_scale_hides_no_integer(tmp_path: Path) -> None:
    raw = random_blocks("Q4_1").reshape(-1, 20)
    raw[:, :4] = np.frombuffer(np.array([6e-8, 6e4], np.float16).tobytes(), np.uint8)
    expected = np.concatenate((raw[:, 4:] & 15, raw[:, 4:] >> 4), 1).reshape(ROWS, COLS)
    assert np.array_equal(read_groups(entry_of("Q4_1", raw, tmp_path)).values, expected)


def test_what_is_no_matrix_of_whole_groups_is_not_read_so(tmp_path: Path) -> None:
    entry = entry_of("Q8_0", random_blocks("Q8_0"), tmp_path)
    assert not gguf_grouping(replace(entry, shape=(ROWS * COLS,)))
    assert not gguf_grouping(replace(entry, less=1.0))
    assert not gguf_grouping(replace(entry, dtype="F16"))
    assert not gguf_grouping(replace(entry, dtype="IQ2_XXS"))


def test_groups_that_the_kernels_take() -> None:
    assert [group for group in range(1, 300) if fits_groups(768, group)] == [16, 32, 64, 96, 128, 192, 256]
    assert not fits_groups(80, 16)
    assert not fits_groups(0, 0)


def test_shapes_that_do_not_fit_each_other_are_refused() -> None:
    whole = groups(4, 32, minima=True)
    assert whole.minima is not None
    for change, message in (
        ({"scales": whole.scales[:2]}, "scales"),
        ({"scales": whole.scales[:, :3]}, "scales"),
        ({"scales": whole.scales[:, :0]}, "scales"),
        ({"scales": np.ones((3, 16), np.float32)}, "groups of 8"),
        ({"minima": whole.minima[:, :2]}, "minima"),
        ({"zero": 16}, "zero"),
        ({"bits": 8, "zero": 1}, "zero"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(whole, **change)


@pytest.mark.parametrize(
    "parts",
    [
        [groups(4, 32, 8), groups(4, 32, 8)],
        [groups(4, 32, 8), groups(4, 32)],
        [groups(4, 128, 8, minima=True), groups(4, 16, 4)],
        [groups(4, 32, 8), groups(8, 16)],
        [groups(8, 64, minima=True), groups(4, 32, minima=True), groups(8, 32)],
        [groups(4, 64), groups(4, 32)],
    ],
    ids=lambda parts: "+".join(f"{part.bits}x{part.group}-{part.zero}" for part in parts),
)
def test_matrices_put_together_keep_their_values(parts: list[GroupedWeights]) -> None:
    joined = join_groups(parts)
    assert np.array_equal(joined.floats(), np.concatenate([part.floats() for part in parts]))
    assert joined.bits == max(part.bits for part in parts)
    assert joined.group == min(part.group for part in parts)
    alike = all((part.zero, part.minima is None) == (parts[0].zero, True) for part in parts)
    assert alike == (joined.zero == parts[0].zero and joined.minima is None)


def test_one_matrix_is_itself() -> None:
    one = groups(4, 32)
    assert join_groups([one]) is one
