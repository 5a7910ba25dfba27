"""What a caller gives to a graph, as the tensors that it takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.errors import UsageError
from shoal.executor.arrays import Array
from shoal.models.graph.manifest import GraphManifest, GraphValue, misfit, sizes_text


def graph_inputs(manifest: GraphManifest, given: Mapping[str, npt.ArrayLike]) -> dict[int, Array]:
    """The inputs of a graph by their places in its manifest, each of the type that it takes.

    Numbers are converted where no kind of number is lost: integers to floats, float64 to float32.

    Raises:
        UsageError: an input is missing, unknown, or of another kind or shape.
    """
    wanted = {manifest.values[value].name: value for value in manifest.inputs}
    if unknown := sorted(given.keys() - wanted.keys()):
        raise UsageError(
            f"the graph has no input named {unknown[0][:80]!r}", check=f"its inputs: {described(manifest)}"
        )
    if missing := [name for name in wanted if name not in given]:
        raise UsageError(
            f"the input {missing[0][:80]!r} is missing", check=f"its inputs: {described(manifest)}"
        )
    return {value: _converted(manifest.values[value], given[name]) for name, value in wanted.items()}


def described(manifest: GraphManifest) -> str:
    """The inputs of a graph for people."""
    values = [manifest.values[value] for value in manifest.inputs]
    return ", ".join(f"{v.name} ({v.dtype} {sizes_text(v.shape) if v.shape else ''})" for v in values)


def _converted(value: GraphValue, given: npt.ArrayLike) -> Array:
    try:
        array: Array = np.asarray(given)
    except ValueError as error:  # lists of unlike lengths
        raise UsageError(f"the input {value.name[:80]!r} is no array: {error}") from error
    if array.dtype.name != value.dtype:
        if not _may_become(array.dtype, np.dtype(value.dtype)):
            raise UsageError(
                f"the input {value.name[:80]!r} is of {value.dtype}, and {array.dtype} cannot become that",
                check="convert it first: array.astype(…)",
            )
        converted = array.astype(value.dtype)
        if array.dtype.kind in "iu" and not np.array_equal(converted, array):
            raise UsageError(f"the input {value.name[:80]!r} has numbers that {value.dtype} does not hold")
        array = converted
    if (why := misfit(value, value.dtype, array.shape)) is not None:
        raise UsageError(f"the input {why}", check="reshape it")
    return array


def _may_become(dtype: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    whole = dtype.kind in "iu" and wanted.kind in "iu"  # a list of Python's integers is of int64
    return dtype.kind in "biuf" and (whole or np.can_cast(dtype, wanted, "same_kind"))
