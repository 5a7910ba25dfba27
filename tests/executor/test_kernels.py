"""A linear layer in each format: how near it is to float32, and what its bits do not depend on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.executor.kernels import c_kernels, torch_kernels
from shoal.executor.kernels.c_kernels import Matrix, ThreadTeam
from shoal.types import Format

FORMATS: tuple[Format, ...] = ("fp32", "bf16", "int8", "w8a8", "int4")
SHAPES = [(1, 1), (37, 50), (64, 96), (130, 544), (70, 2592)]
"""Rows and columns: neither need be a multiple of what the kernels take at once."""

built = pytest.mark.skipif(c_kernels.library() is None, reason="the C kernels are not built")


def values(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def pack(weights: torch.Tensor, format: Format, bias: torch.Tensor | None = None) -> Matrix:
    return c_kernels.pack(weights.numpy(), format, None if bias is None else bias.numpy())


def error(found: torch.Tensor, weights: torch.Tensor, x: torch.Tensor) -> float:
    """What is wrong with ``x @ weights.T``, against its size."""
    exact = x.double() @ weights.double().T
    return float((found - exact).norm() / exact.norm())


@pytest.fixture(params=[pytest.param("kernels", marks=built), "torch"])
def run(request: pytest.FixtureRequest) -> Callable[[Matrix, torch.Tensor], torch.Tensor]:
    """A linear layer by the kernels, and by what stands in for them."""
    team = ThreadTeam(2) if request.param == "kernels" else None
    return lambda matrix, x: torch_kernels.apply(team, matrix, x)


# ---- how near ----


@pytest.mark.parametrize(
    ("format", "bound"), [("fp32", 2e-6), ("bf16", 3e-3), ("int8", 1.2e-2), ("w8a8", 2.2e-2), ("int4", 0.11)]
)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_each_format_is_near_float32(
    run: Callable[[Matrix, torch.Tensor], torch.Tensor],
    format: Format,
    bound: float,
    shape: tuple[int, int],
    batch: int,
) -> None:
    """Against random weights, the worst case: those of a model have fewer bits to lose."""
    weights, x, bias = values(*shape), values(batch, shape[1], 1), values(1, shape[0], 2)[0]
    found = run(pack(weights, format, bias), x)
    assert found.shape == (batch, shape[0])
    assert error(found - bias, weights, x) < bound


def test_int4_needs_whole_groups_and_is_int8_without() -> None:
    assert pack(values(4, 64), "int4").layout == "grouped4"
    assert pack(values(4, 50), "int4").layout == "int8"


def test_int4_has_scales_of_16_bits_for_weights_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups from 1e-9, which become 0, to 1e4; with and without the C kernels."""
    weights = values(48, 160).numpy() * np.logspace(-9, 4, 48, dtype=np.float32)[:, None]
    packed = c_kernels.pack(weights, "int4")
    assert packed.scales is not None
    assert packed.scales.dtype == np.float16
    found = torch_kernels.widen(packed, slice(None)).numpy()
    largest = np.abs(weights.reshape(48, -1, 32)).max(2, keepdims=True)
    error = np.abs((found - weights).reshape(48, -1, 32))
    assert (error <= 0.125 * 1.01 * largest + 2**-22).all()
    monkeypatch.setattr(c_kernels, "library", lambda: None)
    alone = c_kernels.pack(weights, "int4")
    assert alone.scales is not None
    assert np.array_equal(alone.weights, packed.weights)
    assert np.array_equal(alone.scales, packed.scales)
    huge = pack(values(16, 64) * 1e7, "int4")
    assert huge.scales is not None
    assert huge.scales.dtype == np.float32


@pytest.mark.parametrize(
    ("format", "bytes_per_weight"), [("fp32", 4), ("bf16", 2), ("int8", 1), ("w8a8", 1), ("int4", 0.5625)]
)
def test_a_matrix_takes_what_its_format_says(format: Format, bytes_per_weight: float) -> None:
    scales = 4 * 64 if format in ("int8", "w8a8") else 0
    assert pack(values(64, 128), format).bytes == 64 * 128 * bytes_per_weight + scales


def test_an_outlier_column_costs_nothing(run: Callable[[Matrix, torch.Tensor], torch.Tensor]) -> None:
    """One feature a thousand times the others (Dettmers et al., "LLM.int8()", 2022) drowns them in 8 bits.

    LLM.int8() computes such columns in 16 bits beside the others. Here every activation has 11 bits or more,
    so there is nothing to take apart.
    """
    weights, x = values(64, 1024), values(8, 1024, 1)
    weights[:, 5] /= 1000  # trained weights are small where features are large
    x[:, 5] *= 1000
    matrix = pack(weights, "int8")
    kept = torch_kernels.widen(matrix, slice(None))
    rest = slice(6, None)

    eight_bits = x.abs().amax(1, keepdim=True) / 127
    lost = (x / eight_bits).round() * eight_bits
    ours, scale = torch_kernels.quantise(x, "int8", 1024)
    assert error(lost[:, rest] @ kept[:, rest].T, kept[:, rest], x[:, rest]) > 0.5
    assert error((ours * scale)[:, rest] @ kept[:, rest].T, kept[:, rest], x[:, rest]) < 0.04
    assert error(run(matrix, x), kept, x) < 0.04


@pytest.mark.parametrize("size", [1e-20, 1e20])
@pytest.mark.parametrize("format", FORMATS)
def test_huge_and_small_values_scale(
    run: Callable[[Matrix, torch.Tensor], torch.Tensor], format: Format, size: float
) -> None:
    weights, x = values(20, 64) * size, values(6, 64, 1)
    assert error(run(pack(weights, format), x), weights, x) < 0.11
    weights, x = values(20, 64), values(6, 64, 1) * size
    assert error(run(pack(weights, format), x), weights, x) < 0.11


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zeros(run: Callable[[Matrix, torch.Tensor], torch.Tensor], format: Format) -> None:
    weights, x = values(20, 64), values(6, 64, 1)
    weights[3] = 0
    x[2] = 0
    found = run(pack(weights, format), x)
    assert not found[2].any()
    assert not found[:, 3].any()
    assert found[0, 0] != 0
    assert run(pack(weights, format), x[:0]).shape == (0, 20)


# ---- what the bits do not depend on ----


@built
@pytest.mark.parametrize("format", ["int8", "w8a8", "int4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_is_the_same_beside_any_others(format: Format, shape: tuple[int, int]) -> None:
    matrix = pack(values(*shape), format, values(1, shape[0], 2)[0])
    x = values(33, shape[1], 1)
    alone = torch.cat([torch_kernels.apply(ThreadTeam(1), matrix, row[None]) for row in x])
    for threads in (1, 2):
        team = ThreadTeam(threads)
        for batch in (1, 2, 3, 8, 32, 33):
            assert torch.equal(torch_kernels.apply(team, matrix, x[:batch]), alone[:batch])
            assert torch.equal(torch_kernels.apply(team, matrix, x[-batch:]), alone[-batch:])
        loud = x * 1e6
        loud[4] = x[4]
        assert torch.equal(torch_kernels.apply(team, matrix, loud)[4], alone[4])


@pytest.mark.parametrize("format", ["int8", "w8a8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_and_w8a8_are_sums_of_integers_scaled_once(
    run: Callable[[Matrix, torch.Tensor], torch.Tensor], shape: tuple[int, int], format: Format
) -> None:
    """Written out: what any machine must give, bit for bit."""
    rows, cols = shape
    bias, x = values(1, rows, 2)[0], values(9, cols, 1)
    matrix = pack(values(rows, cols), format, bias)
    weights, scales = torch_kernels.integers_of(matrix, slice(None)), matrix.scales
    most = 127 if format == "w8a8" else 32767
    limit = torch.tensor(float(min(most, (2**31 - 1) // (127 * cols))))
    largest = x.abs().amax(1, keepdim=True)
    integers = (x * (limit / largest)).round().long()
    sums = integers @ weights.long().T
    assert scales is not None
    assert sums.abs().max() < 2**31
    by_row = torch_kernels.tensor_of(scales).reshape(-1)[:rows]
    assert torch.equal(run(matrix, x), sums.float() * (by_row * (largest / limit)) + bias)


@built
@pytest.mark.parametrize("format", ["int8", "w8a8"])
def test_a_row_is_the_same_with_and_without_what_a_cpu_has_beyond_its_level(format: Format) -> None:
    """AMX and products of bytes, where this CPU has them; columns in one and in several blocks of AMX's."""
    plain, all_of_it = ThreadTeam(2), ThreadTeam(2)
    assert plain.limit(0) == 0
    for rows, cols in [*SHAPES, (300, 1100)]:
        matrix, x = pack(values(rows, cols), format, values(1, rows, 2)[0]), values(40, cols, 1)
        for batch in (1, 9, 16, 40):
            expected = torch_kernels.apply(plain, matrix, x[:batch])
            assert torch.equal(torch_kernels.apply(all_of_it, matrix, x[:batch]), expected)


@pytest.mark.parametrize("format", ["int8", "w8a8"])
def test_a_row_of_next_to_nothing_is_zeros(
    run: Callable[[Matrix, torch.Tensor], torch.Tensor], format: Format
) -> None:
    """So small that its scale has no reciprocal in float32."""
    assert not run(pack(values(20, 64), format), values(3, 64, 1) * 1e-42).any()


@built
@pytest.mark.parametrize("format", ["int8", "w8a8", "int4"])
def test_packing_is_the_same_without_the_kernels(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = values(40, 96)
    weights[3] = 0
    packed = pack(weights, format)
    monkeypatch.setattr(c_kernels, "library", lambda: None)
    without = pack(weights, format)
    assert packed.scales is not None
    assert without.scales is not None
    assert np.array_equal(packed.weights, without.weights)
    assert np.array_equal(packed.scales, without.scales)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_a_matrix_are_its_weights_again(format: Format) -> None:
    weights = values(40, 96)
    rows = torch_kernels.widen(pack(weights, format), slice(3, 9))
    assert float((rows - weights[3:9]).norm() / weights[3:9].norm()) < 0.11


# ---- where there are no kernels ----


def test_without_a_compiler_the_build_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root))
    hatch_build = pytest.importorskip("hatch_build")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(hatch_build.shutil, "which", lambda name: None)
    assert hatch_build.compile_kernels(root) == []
    assert "no C compiler" in capsys.readouterr().err
    assert "hatch_build" in sys.modules


@built
def test_large_products_of_bf16_go_to_onednn_when_asked_and_come_out_near(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on CPUs that multiply bfloat16 in hardware. What oneDNN cannot do is done by our kernel."""
    weights, x, bias = values(130, 96), values(40, 96, 1), values(1, 130, 2)[0]
    matrix = pack(weights, "bf16", bias)
    ours = torch_kernels.apply(ThreadTeam(2, onednn=False), matrix, x)
    asked: list[int] = []
    multiply = torch.nn.functional.linear

    def counted(given: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        asked.append(len(given))
        return multiply(given, held)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    team = ThreadTeam(2, onednn=True)
    found = torch_kernels.apply(team, matrix, x)
    assert asked == [40]
    assert float((found - ours).norm() / ours.norm()) < 5e-3
    assert torch.equal(
        torch_kernels.apply(team, matrix, x[:4]),
        torch_kernels.apply(ThreadTeam(2, onednn=False), matrix, x[:4]),
    )
    assert asked == [40], "few rows are ours"

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("no")

    monkeypatch.setattr(torch.nn.functional, "linear", broken)
    assert torch.equal(torch_kernels.apply(team, matrix, x), ours)
