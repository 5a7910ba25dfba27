"""Arrays in files: what a graph is given, and what it gave."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from shoal.errors import UsageError
from shoal.executor.arrays import Array

OUTPUTS = (".npz", ".npy")
"""What names of files of outputs end in."""
MAX_FILE = 1 << 30
"""Bytes of one file."""


def read_inputs(given: Sequence[str]) -> dict[str, npt.ArrayLike]:
    """The arrays of ``NAME=FILE``, or of ``FILE`` with several by their names.

    A file is ``.npy``, ``.npz`` or ``.json``: lists of numbers, or an object of such lists by name.

    Raises:
        UsageError: a file cannot be read, or is of another kind.
    """
    found: dict[str, npt.ArrayLike] = {}
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


def _read(file: Path, name: str) -> dict[str, npt.ArrayLike]:
    try:
        if file.stat().st_size > MAX_FILE:
            raise UsageError(f"--input: {file} has more than {MAX_FILE >> 20} MiB")
        match file.suffix.lower():
            case ".npy":
                return {_named(name, file): np.load(file, allow_pickle=False)}
            case ".npz":
                with np.load(file, allow_pickle=False) as arrays:
                    return _several(dict(arrays), name, file)
            case ".json":
                read = json.loads(file.read_bytes())
                return _several(read, name, file) if isinstance(read, dict) else {_named(name, file): read}
            case _:
                raise UsageError(
                    f"--input: {file} is of a kind that is not read", check="give .npy, .npz or .json"
                )
    except FileNotFoundError as error:
        raise UsageError(f"--input: there is no file {file}") from error
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"--input: {file} cannot be read: {error}") from error


def _named(name: str, file: Path) -> str:
    if not name:
        raise UsageError(
            f"--input: {file} holds one array; which input is it?", check=f"write --input NAME={file}"
        )
    return name


def _several(arrays: dict[str, npt.ArrayLike], name: str, file: Path) -> dict[str, npt.ArrayLike]:
    """All of a file's arrays by their names, or the only one under another name."""
    if not name:
        return arrays
    if name in arrays:
        return {name: arrays[name]}
    if len(arrays) == 1:
        return {name: next(iter(arrays.values()))}
    raise UsageError(f"--input: {file} has no array named {name!r}, but {', '.join(arrays)[:200]}")
