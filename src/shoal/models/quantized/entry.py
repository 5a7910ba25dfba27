"""A weight that was published quantised: which tensors make it up, and what they mean together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.errors import BadWeights
from shoal.models.checkpoint.headers import TensorEntry

RowIndex = slice | NDArray[np.intp]
"""Which rows of a matrix."""
StoredArrays = Mapping[str, NDArray[Any]]
"""The tensors of a weight, by what its scheme calls them. Floats are float32, exponents of 8 bits too; other
floats of 8 bits are uint8."""


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Some rows of a matrix, each weight of which is ``scale * (code - zero)``."""

    codes: NDArray[Any]
    """``[n, cols]``: small integers, or the numbers that a code stands for."""
    scales: NDArray[np.float32]
    """``[n, groups]``."""
    zeros: NDArray[Any] | None = None
    """As the scales; ``None``: they are all 0."""
    group_of: NDArray[np.intp] | None = None
    """Of each column its group; ``None``: groups are of as many columns each, one after another."""


RowReader = Callable[[RowIndex], QuantizedRows]


class PublishedLayout(Protocol):
    """How a scheme stores a matrix ``[rows, cols]``."""

    @property
    def bits(self) -> int | None:
        """Of a code; ``None`` where codes stand for numbers that are not evenly spaced."""
        ...

    @property
    def group(self) -> int:
        """Weights of a row that share a scale, where no order of the columns is stored."""
        ...

    @property
    def has_zeros(self) -> bool:
        """Whether groups have zeros of their own."""
        ...

    def open(self, parts: StoredArrays) -> RowReader:
        """What reads rows.

        Raises:
            ValueError: what is in them cannot be: what, in words that complete "a tensor …".
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedEntry(TensorEntry):
    """A weight made up of several tensors, by the name and shape that it has in the plain model.

    ``file`` and ``begin`` are those of its codes, ``size`` is that of all its tensors.
    """

    parts: Mapping[str, TensorEntry]
    """The stored tensors, by what the scheme calls them."""
    layout: PublishedLayout
    turned: bool = False
    """Whether the matrix is stored with its two last dimensions exchanged."""

    @property
    def stored(self) -> tuple[TensorEntry, ...]:
        return tuple(self.parts.values())

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape as it is stored: the last dimension are the columns."""
        *lead, rows, cols = self.shape
        return (*lead, cols, rows) if self.turned else self.shape


def quantized_entry(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    parts: Mapping[str, TensorEntry],
    layout: PublishedLayout,
    *,
    turned: bool = False,
) -> QuantizedEntry:
    """The weight ``name`` of parts of which the first are its codes; ``shape`` is that of the plain model."""
    codes = next(iter(parts.values()))
    size = sum(part.size for part in parts.values())
    return QuantizedEntry(
        name, dtype, shape, codes.file, codes.begin, size, parts=parts, layout=layout, turned=turned
    )


def packed_modules(
    tensors: Mapping[str, TensorEntry], folder: Path
) -> Iterator[tuple[str, dict[str, TensorEntry]]]:
    """Each quantised module's name, with its dot, and its parts, as AutoGPTQ and AutoAWQ both name them.

    Raises:
        BadWeights: a part is missing.
    """
    for name, codes in tensors.items():
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix("qweight")
        parts = {"qweight": codes}
        for part in ("scales", "qzeros"):
            if module + part not in tensors:
                raise missing(folder, module + part, name)
            parts[part] = tensors[module + part]
        yield module, parts


def bad(entry: TensorEntry, what: str) -> BadWeights:
    """The error about a tensor that contradicts the others, or the config."""
    return BadWeights(
        f"{entry.file}: tensor {entry.name[:120]!r} {what}",
        check="check that config.json and the weights are of the same version of the model",
    )


def missing(folder: Path, name: str, of: str) -> BadWeights:
    """The error about a tensor without which a weight means nothing."""
    return BadWeights(
        f"{folder}: tensor {name[:120]!r} is missing, without which {of[:120]!r} cannot be read",
        check="check that the model was downloaded completely",
    )
