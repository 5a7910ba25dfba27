"""Arrays in files: what a graph is given, and what it gave."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from shoal.client.graph.input_files import GraphInput, by_graph, check_there, named_array, read_arrays
from shoal.errors import UsageError
from shoal.executor.arrays import Array

OUTPUTS = (".npz", ".npy")
"""What names of files of outputs end in."""


def read_inputs(given: Sequence[str]) -> dict[str, GraphInput]:
    """The arrays of ``NAME=FILE``, or of ``FILE`` with several by their names.

    A file is ``.npy``, ``.npz`` or ``.json``: lists of numbers, or an object of such lists by name. Pictures
    and sounds are read when the graph is known.

    Raises:
        UsageError: a file cannot be read, or is of another kind.
    """
    found: dict[str, GraphInput] = {}
    for text in given:
        name, equals, file = text.partition("=")
        for key, array in _read(Path(file if equals else text), name if equals else "").items():
            if key in found:
                raise UsageError(f"--input: {key!r} is given twice")
            found[key] = array
    return found


def write_outputs(file: Path, outputs: Mapping[str, Array]) -> None:
    """Write the outputs as ``.npz``, or the only one as ``.npy``.

    Raises:
        UsageError: there are several outputs, or none, for an ``.npy``.
        OSError: it cannot be written.
    """
    if file.suffix == ".npz":
        # Not np.savez, to which an output of the name "file" would be an argument of its own.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in outputs.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.save(cast("BinaryIO", stream), array, allow_pickle=False)
    elif len(outputs) == 1:
        np.save(file, next(iter(outputs.values())), allow_pickle=False)
    else:
        raise UsageError(
            f"--output: {file}: {len(outputs)} outputs do not fit into one .npy",
            check="name a file that ends in .npz",
        )


def _read(file: Path, name: str) -> dict[str, GraphInput]:
    if by_graph(file):
        check_there(file)
        return {_named(name, file): file}
    read = read_arrays(file)
    if not isinstance(read, dict):
        return {_named(name, file): read}
    arrays: dict[str, npt.ArrayLike] = read
    return {name: named_array(arrays, name, file)} if name else dict(arrays)


def _named(name: str, file: Path) -> str:
    if not name:
        raise UsageError(
            f"--input: {file} holds one array; which input is it?", check=f"write --input NAME={file}"
        )
    return name
