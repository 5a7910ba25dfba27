"""Weights in groups: products with what was published, and what their bits do not depend on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.executor.device.products import (
    GroupedMatrix,
    PackedInt4Matrix,
    Products,
    find_products,
    place_matrix,
)
from shoal.executor.kernels import c_kernels, torch_kernels
from shoal.executor.kernels.c_kernels import Matrix, ThreadTeam
from shoal.executor.kernels.groups import pack_groups
from shoal.models.checkpoint.grouped import Bits, GroupedWeights

NATIVE = Path(c_kernels.__file__).parents[1] / "native"
BITS: tuple[Bits, ...] = (4, 8)
KINDS = [(bits, group) for bits in BITS for group in (16, 32, 96, 480)]
"""Bits and weights of a group; rows have 480, which is no whole number of eight groups."""
CPU = torch.device("cpu")

built = pytest.mark.skipif(c_kernels.library() is None, reason="the C kernels are not built")


def weights(
    bits: Bits, group: int, *, minima: bool = True, rows: int = 75, cols: int = 480
) -> GroupedWeights:
    generator = np.random.default_rng(bits * group)
    lowest, highest = (0, 16) if bits == 4 else (-128, 128)
    scales = (generator.standard_normal((rows, cols // group)) / highest).astype(np.float32)
    least = generator.standard_normal(scales.shape).astype(np.float32) if minima else None
    values = generator.integers(lowest, highest, (rows, cols)).astype(np.int8)
    return GroupedWeights(values, scales, least, bits, 0 if minima or bits == 8 else 8)


def rows_of(n: int, cols: int = 480) -> torch.Tensor:
    return torch.randn(n, cols, generator=torch.Generator().manual_seed(n))


@pytest.fixture(params=[pytest.param("kernels", marks=built), "torch"])
def run(request: pytest.FixtureRequest) -> Callable[[Matrix, torch.Tensor], torch.Tensor]:
    """A linear layer by the kernels, and by what stands in for them."""
    team = ThreadTeam(2) if request.param == "kernels" else None
    return lambda matrix, x: torch_kernels.apply(team, matrix, x)


@pytest.mark.parametrize(("bits", "group"), KINDS)
@pytest.mark.parametrize("minima", [False, True], ids=["scales", "minima"])
def test_no_weight_changes_when_it_is_packed(bits: Bits, group: int, minima: bool) -> None:
    given = weights(bits, group, minima=minima)
    packed = pack_groups(given)
    assert (packed.layout, packed.group) == (f"grouped{bits}", group)
    assert np.array_equal(torch_kernels.widen(packed, slice(None)).numpy(), given.floats())
    assert np.array_equal(torch_kernels.widen(packed, slice(3, 9)).numpy(), given.floats()[3:9])


def test_scales_take_16_bits_where_that_loses_nothing() -> None:
    fine = weights(4, 32, rows=80)
    assert fine.minima is not None
    coarse = GroupedWeights(
        fine.values, *(np.float32(np.float16(part)) for part in (fine.scales, fine.minima)), 4
    )
    mixed = GroupedWeights(fine.values, coarse.scales, fine.minima, 4)
    huge = GroupedWeights(fine.values, coarse.scales + np.float32(65536), coarse.minima, 4)
    taken = [pack_groups(given).bytes / fine.values.size for given in (coarse, fine, mixed, huge)]
    assert taken == [0.5 + 4 / 32, *[0.5 + 8 / 32] * 3]
    for given in (coarse, fine, mixed, huge):
        assert np.array_equal(torch_kernels.widen(pack_groups(given), slice(None)).numpy(), given.floats())


@pytest.mark.parametrize(("bits", "group"), KINDS)
@pytest.mark.parametrize("minima", [False, True], ids=["scales", "minima"])
@pytest.mark.parametrize("batch", [1, 3, 8, 21])
def test_products_are_those_of_the_weights(
    run: Callable[[Matrix, torch.Tensor], torch.Tensor], bits: Bits, group: int, minima: bool, batch: int
) -> None:
    given = weights(bits, group, minima=minima)
    x, bias = rows_of(batch), rows_of(1, 75)[0]
    expected = x.double() @ torch.from_numpy(given.floats()).double().T
    found = run(pack_groups(given, bias.numpy()), x) - bias
    assert float((found - expected).norm() / expected.norm()) < 3e-4


@pytest.mark.parametrize("layout", ["floats", "halves"])
def test_scales_of_whole_vectors_and_what_is_left_of_them_are_read_alike(
    run: Callable[[Matrix, torch.Tensor], torch.Tensor], layout: str
) -> None:
    """512 columns have two whole vectors of scales, 480 one and a rest."""
    for cols in (512, 480):
        given = weights(4, 32, cols=cols)
        if layout == "halves":
            assert given.minima is not None
            scales, minima = (np.float32(np.float16(part)) for part in (given.scales, given.minima))
            given = GroupedWeights(given.values, scales, minima, 4)
        packed, x = pack_groups(given), rows_of(5, cols)
        assert packed.scales is not None
        assert packed.scales.dtype == (np.float16 if layout == "halves" else np.float32)
        expected = x.double() @ torch.from_numpy(given.floats()).double().T
        assert float((run(packed, x) - expected).norm() / expected.norm()) < 3e-4


def test_a_device_multiplies_them_too() -> None:
    """4 bits in groups that torch's own product takes go there; the rest is widened for each product."""
    products = find_products(CPU)
    for bits, group in [*KINDS, (4, 64), (8, 64)]:
        for minima in (False, True):
            given = weights(bits, group, minima=minima, rows=96, cols=960)
            matrix = pack_groups(given, np.ones(96, np.float32))
            x = rows_of(7, matrix.cols)
            expected = x @ torch.from_numpy(given.floats()).T + 1
            for found in (place_matrix(matrix, CPU, Products()), place_matrix(matrix, CPU, products)):
                assert (found.rows, found.cols) == (matrix.rows, matrix.cols)
                out = found.multiply(x).float()
                assert float((out - expected).norm() / expected.norm()) < 0.006
            packed = bits == 4 and group in (32, 64)
            assert isinstance(found, PackedInt4Matrix if packed else GroupedMatrix)
            assert found.bytes <= matrix.bytes


# ---- what the bits do not depend on ----


@built
@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_a_row_is_the_same_beside_any_others(bits: Bits, group: int) -> None:
    matrix, x = pack_groups(weights(bits, group)), rows_of(11)
    alone = torch.cat([torch_kernels.apply(ThreadTeam(1), matrix, row[None]) for row in x])
    for threads in (1, 2):
        team = ThreadTeam(threads)
        for batch in (1, 2, 4, 7, 11):
            assert torch.equal(torch_kernels.apply(team, matrix, x[:batch]), alone[:batch])
            assert torch.equal(torch_kernels.apply(team, matrix, x[-batch:]), alone[-batch:])
        loud = x * 1e6
        loud[4] = x[4]
        assert torch.equal(torch_kernels.apply(team, matrix, loud)[4], alone[4])


@built
def test_every_level_of_the_cpu_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    best = ctypes.CDLL(str(NATIVE / "kernels-v1.so")).cpu_level()
    names = [f"v{n}" for n in (1, 3, 4) if n <= best and (NATIVE / f"kernels-v{n}.so").exists()]
    results: list[list[torch.Tensor]] = []
    for name in names:
        library = c_kernels._declare(ctypes.CDLL(str(NATIVE / f"kernels-{name}.so")))
        monkeypatch.setattr(c_kernels, "library", lambda library=library: library)
        team = ThreadTeam(2)
        results.append(
            [torch_kernels.apply(team, pack_groups(weights(*kind)), rows_of(6)) for kind in KINDS]
            + [torch_kernels.apply(team, c_kernels.pack(rows_of(40).numpy(), "int4"), rows_of(6))]
        )
    for before, after in pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
