"""Inputs that are files: arrays, pictures and sounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal.client.graph.pictures import picture_array
from shoal.client.graph.sounds import SOUNDS, sound_array
from shoal.client.vision.picture_files import PICTURES
from shoal.errors import UsageError
from shoal.models.graph.manifest import GraphManifest, GraphValue
from shoal.models.graph.preprocess import Preprocess

GraphInput = npt.ArrayLike | Path
"""An array, lists of numbers, or a file of either, of a picture or of a sound."""
KINDS = ".npy, .npz, .json, .png, .jpg or .wav"
MAX_FILE = 1 << 30
"""Bytes of one file."""


def by_graph(file: Path) -> bool:
    """Whether how a file becomes an array depends on the graph: a picture, or a sound."""
    return file.suffix.lower() in (*PICTURES, *SOUNDS)


def read_given(
    manifest: GraphManifest, given: Mapping[str, GraphInput], preprocess: str = ""
) -> dict[str, npt.ArrayLike]:
    """The inputs of a graph, with those that are files read.

    Args:
        preprocess: how pictures and sounds become arrays, as :meth:`Preprocess.parse` reads it. What it does
            not say the graph's author may have said, and its inputs' shapes.

    Raises:
        UsageError: a file cannot be read, or is not what the input takes; ``preprocess`` is not understood.
        IncompatibleLibrary: pictures need Pillow.
    """
    asked = Preprocess.parse(preprocess)
    values = {manifest.values[value].name: manifest.values[value] for value in manifest.inputs}
    how = asked.over(_authors(manifest))
    return {
        name: _read_for(array, how, values.get(name), name) if isinstance(array, Path) else array
        for name, array in given.items()
    }


def read_arrays(file: Path) -> dict[str, npt.ArrayLike] | npt.ArrayLike:
    """What an ``.npy``, ``.npz`` or ``.json`` file holds: one array, or several by name.

    Raises:
        UsageError: it cannot be read, or is of another kind.
    """
    try:
        _check_size(file)
        match file.suffix.lower():
            case ".npy":
                return np.load(file, allow_pickle=False)
            case ".npz":
                with np.load(file, allow_pickle=False) as arrays:
                    return dict(arrays)
            case ".json":
                return json.loads(file.read_bytes())
            case _:
                raise UsageError(f"{file} is of a kind that is not read", check=f"give {KINDS}")
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {file}") from error
    except (OSError, ValueError, EOFError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def check_there(file: Path) -> None:
    """Raises UsageError: there is no such file, or it is too large."""
    try:
        _check_size(file)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {file}") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def named_array(arrays: Mapping[str, npt.ArrayLike], name: str, file: Path) -> npt.ArrayLike:
    """A file's array of that name, or its only one.

    Raises:
        UsageError: it has several others.
    """
    if name in arrays:
        return arrays[name]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise UsageError(f"{file} has no array named {name!r}, but {', '.join(arrays)[:200]}")


def _check_size(file: Path) -> None:
    if file.stat().st_size > MAX_FILE:
        raise UsageError(f"{file} has more than {MAX_FILE >> 20} MiB")


def _authors(manifest: GraphManifest) -> Preprocess:
    try:
        return Preprocess.parse(manifest.preprocess)
    except UsageError:  # of a version that knows more than this one
        return Preprocess()


def _read_for(file: Path, how: Preprocess, value: GraphValue | None, name: str) -> npt.ArrayLike:
    if by_graph(file) and value is not None:
        check_there(file)
        return (picture_array if file.suffix.lower() in PICTURES else sound_array)(file, how, value)
    if by_graph(file):
        return 0  # of an input that the graph does not have, which is said next
    read = read_arrays(file)
    return named_array(read, name, file) if isinstance(read, dict) else read
