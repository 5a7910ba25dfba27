"""The names of the files that one model is split into, ``name-00001-of-00003.gguf``."""

from __future__ import annotations

import re
from pathlib import Path

from shoal.errors import BadWeights

SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE)


def shard_names(name: str) -> list[str]:
    """The names of all files of the model of which ``name`` is one, in order; ``name`` alone if it is whole.

    Raises:
        BadWeights: a number that cannot be, for example 4 of 3.
    """
    found = SHARD.fullmatch(name)
    if found is None:
        return [name]
    count = int(found["count"])
    if not 1 <= int(found["number"]) <= count:
        raise BadWeights(
            f"{name}: it is named file {int(found['number'])} of {count}", check="correct the file's name"
        )
    return [
        f"{found['name']}-{number:05}-of-{found['count']}{found['end']}" for number in range(1, count + 1)
    ]


def whole_name(name: str) -> str:
    """A model's name by that of its file: without the suffix, and without which part it is."""
    found = SHARD.fullmatch(name)
    return found["name"] if found is not None else Path(name).stem


def shards(file: Path) -> list[Path]:
    """All files of the model of which ``file`` is one, in order.

    Raises:
        BadWeights: one is missing; names it.
    """
    files = [file.with_name(name) for name in shard_names(file.name)]
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise BadWeights(
            f"{missing} is missing: {file.name} is one of {len(files)} files of a model",
            check=f"download all {len(files)} files into {file.parent}",
        )
    return files
