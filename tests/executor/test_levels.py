"""Every level of the CPU gives the same bits, in each format and for any batch."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from hashlib import sha256

import numpy as np
import pytest

from shoal.executor.kernels import c_kernels
from shoal.executor.kernels.built import NATIVE, kernels_built
from shoal.executor.kernels.c_kernels import ThreadTeam, pack
from shoal.types import Format
from tests.executor.attending import KV_FORMATS, LONGEST, Attention, Step

pytestmark = pytest.mark.skipif(not kernels_built(), reason="the C kernels are not built")

FORMATS: tuple[Format, ...] = ("fp32", "bf16", "int8", "w8a8", "int4")
SHAPES = [(37, 50), (64, 96), (130, 544), (70, 2592)]
"""Rows and columns of weights."""
BATCHES = (1, 2, 4, 9, 35)
"""Rows of x: few are taken in other ways than many."""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ctypes.CDLL]]:
    """The kernels of all levels that this CPU runs, and those of AVX-512's width for any CPU."""
    built = {path.stem: path for path in sorted(NATIVE.glob("kernels-v*.so"))}
    best = ctypes.CDLL(str(built["kernels-v1"])).cpu_level()
    usable = {name: path for name, path in built.items() if int(name[-1]) <= best}
    if compiler := os.environ.get("CC") or shutil.which("cc"):
        usable["wide"] = tmp_path_factory.mktemp("wide") / "kernels-wide.so"
        command = [*compiler.split(), "-O0", "-ffp-contract=off", "-std=gnu11", "-fPIC", "-Wno-psabi"]
        sources = [str(path) for path in sorted(NATIVE.glob("*.c"))]
        made = ["-shared", "-o", str(usable["wide"]), "-lpthread", "-lm"]
        subprocess.run([*command, "-DLANES=16", *sources, *made], check=True)
    yield {name: c_kernels._declare(ctypes.CDLL(str(path))) for name, path in usable.items()}


def digest(arrays: list[np.ndarray]) -> str:
    return sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


@pytest.mark.parametrize("format", FORMATS)
def test_a_linear_layer_has_the_same_hash_on_every_level(
    libraries: dict[str, ctypes.CDLL], format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    layers = [random.standard_normal(shape, np.float32) for shape in SHAPES]
    given = [random.standard_normal((max(BATCHES), cols), np.float32) for _, cols in SHAPES]
    found: dict[str, str] = {}
    for name, library in libraries.items():
        monkeypatch.setattr(c_kernels, "library", lambda library=library: library)
        team = ThreadTeam(2, onednn=False)
        found[name] = digest(
            [
                team.linear(pack(weights, format), x[:batch])
                for weights, x in zip(layers, given, strict=True)
                for batch in BATCHES
            ]
        )
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("format", KV_FORMATS)
def test_attention_has_the_same_hash_on_every_level(
    libraries: dict[str, ctypes.CDLL], format: Format
) -> None:
    steps = [Step(LONGEST - 1), Step(700, 9), Step(3)]
    found = {
        name: digest([Attention(library, format).run(steps, window=window) for window in (0, 300)])
        for name, library in libraries.items()
    }
    assert len(set(found.values())) == 1, found
