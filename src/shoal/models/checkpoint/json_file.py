"""The JSON files of a model's folder, each read within a limit: a stranger wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights
from shoal.models.store.lookalikes import what_it_is
from shoal.models.untrusted.bounded_json import parse


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """How large a JSON file of a model may be."""

    size: int
    """Bytes."""
    values: int
    """Those in lists and objects included. A million take a second and 200 MB."""


def read_object(path: Path, limit: SizeLimit) -> dict[str, Any]:
    """A JSON object of a model's folder, in UTF-8, or in UTF-16 or 32 with a byte order mark.

    Raises:
        BadWeights: it cannot be read, is too large or nested too deep, or is no JSON object.
    """
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise BadWeights(f"{path}: not a JSON object", check="fetch the file again")
    return cast(dict[str, Any], value)


def read_json(path: Path, limit: SizeLimit) -> object:
    """Any JSON of a model's folder. Raises as :func:`read_object`."""
    try:
        if path.stat().st_size > limit.size:
            raise BadWeights(
                f"{path}: larger than the {limit.size >> 20} MiB that we read",
                check="check that the model comes from a source you trust",
            )
        return parse(path.read_bytes(), values=limit.values)
    except OSError as error:
        raise BadWeights(
            f"{path}: it cannot be read ({error.strerror})", check="check the file's permissions"
        ) from error
    except ValueError as error:
        what, check = what_it_is(path)
        raise BadWeights(
            f"{path} is {what}" if what else f"{path}: not valid JSON ({error})",
            check=check or "fetch the file again",
        ) from error
