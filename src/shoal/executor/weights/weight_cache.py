"""Packed weights on disk, so that a node's second start need not quantise again.

One safetensors file for each block, under the model's digest and the format. Only int8, w8a8 and int4 are
kept: bf16 and published integers are read from the model's files as fast. The cache's are mapped, so nodes on
one machine share their pages.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shoal.errors import BadWeights
from shoal.executor.arrays import Array
from shoal.executor.kernels.c_kernels import GROUP, INT4_ZERO, Matrix
from shoal.executor.kernels.tiles import QUAD, TILE, quads_of, tiles_of
from shoal.models.checkpoint.headers import read_safetensors_header
from shoal.types import Digest, Format

VERSION = "3"
"""Of the packing: another version's files are not read."""

STORED = {"I8": np.int8, "U8": np.uint8, "F16": np.float16, "F32": np.float32}

log = logging.getLogger(__name__)

Matrices = Mapping[str, Matrix]


class WeightCache:
    """Where the packed blocks of one model in one format lie."""

    def __init__(self, cache: Path, digest: Digest, format: Format) -> None:
        self._folder = cache / "packed" / f"{digest.removeprefix('sha256:')[:32]}-{format}"
        self._keeps = format in ("int8", "w8a8", "int4")

    def fetch(self, block: str, make: Callable[[], Matrices]) -> Matrices:
        """The packed matrices of ``block``: from disk, or made and put there.

        A disk that is full or read-only costs the next start its time, not this one its life.
        """
        if not self._keeps:
            return make()
        file = self._folder / f"{block}.safetensors"
        if (found := _read(file)) is not None:
            return found
        made = make()
        try:
            _write(file, made)
        except (OSError, SafetensorError) as error:
            log.warning("packed weights are not kept for the next start: %s", error)
        return made


def _read(file: Path) -> Matrices | None:
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="np") as opened:
            said = opened.metadata() or {}
        if said.get("version") != VERSION:
            return None
        tensors = {
            entry.name: np.memmap(file, STORED[entry.dtype], "r", entry.begin, entry.shape).view(np.ndarray)
            for entry in read_safetensors_header(file)
        }
        return {name: _matrix(name, said, tensors) for name in said["matrices"].split()}
    except (OSError, SafetensorError, BadWeights, KeyError, ValueError) as error:
        log.warning("%s is damaged and made anew: %s", file, error)
        return None


def _matrix(name: str, said: Mapping[str, str], tensors: Mapping[str, Array]) -> Matrix:
    layout = said[f"{name}.layout"]
    if layout not in ("int8", "w8a8", "grouped4"):
        raise ValueError(f"{name} is in {layout!r}")
    weights, scales = tensors[f"{name}.weights"], tensors[f"{name}.scales"]
    rows, cols = int(said[f"{name}.rows"]), int(said[f"{name}.cols"])
    shapes = (rows, cols), (rows,)
    if layout == "grouped4":
        tiles, groups = tiles_of(rows), cols // GROUP
        shapes = (tiles, groups, TILE * GROUP // 2), (tiles, groups, TILE)
    if layout == "w8a8":
        shapes = (tiles_of(rows), quads_of(cols), TILE, QUAD), (tiles_of(rows), TILE)
    if (weights.shape, scales.shape) != shapes:
        raise ValueError(f"{name} has weights {weights.shape} and scales {scales.shape}")
    zero = INT4_ZERO if layout == "grouped4" else 0
    return Matrix(layout, rows, cols, weights, scales, tensors.get(f"{name}.bias"), zero=zero)


def _write(file: Path, matrices: Matrices) -> None:
    tensors: dict[str, Array] = {}
    said = {"version": VERSION, "matrices": " ".join(matrices)}
    for name, matrix in matrices.items():
        said[f"{name}.layout"] = matrix.layout
        said[f"{name}.rows"], said[f"{name}.cols"] = str(matrix.rows), str(matrix.cols)
        tensors[f"{name}.weights"] = matrix.weights
        if matrix.scales is not None:
            tensors[f"{name}.scales"] = matrix.scales
        if matrix.bias is not None:
            tensors[f"{name}.bias"] = matrix.bias
    file.parent.mkdir(parents=True, exist_ok=True)
    # Two nodes may start at once: each writes its own, and the last one stays.
    fresh = file.with_suffix(f".{os.getpid()}")
    try:
        save_file(tensors, fresh, metadata=said)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
