"""One model in several GGUF files, ``name-00001-of-00003.gguf``: how large ones are published.

Each file is a GGUF file with some of the tensors; the first has the model's pairs, and all have ``split.no``
(from 0), ``split.count`` and ``split.tensors.count``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from shoal.models.gguf.header import GgufHeader, GgufTensor, Value, bad, read_gguf_header
from shoal.models.gguf.names import shards


@dataclass(frozen=True, slots=True)
class Gguf:
    """A model in one or several GGUF files."""

    headers: tuple[GgufHeader, ...]

    @property
    def file(self) -> Path:
        """The first file: what errors name."""
        return self.headers[0].file

    @property
    def pairs(self) -> dict[str, Value]:
        return self.headers[0].pairs

    @property
    def tensors(self) -> dict[str, GgufTensor]:
        """Every tensor, by its name."""
        return {tensor.name: tensor for header in self.headers for tensor in header.tensors}


def read_gguf(file: Path) -> Gguf:
    """The headers of the model of which ``file`` is the whole or a part.

    Raises:
        BadWeights: a file is missing, damaged, or does not belong to the others.
        UnsupportedModel: see :func:`read_gguf_header`.
    """
    files = shards(file)
    gguf = Gguf(tuple(read_gguf_header(path) for path in files))
    for number, header in enumerate(gguf.headers):
        _check_place(header, number, len(files))
    names = [tensor.name for tensor in chain.from_iterable(header.tensors for header in gguf.headers)]
    twice, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        raise bad(file, f"tensor {twice[:80]!r} is in two of the {len(files)} files", SAME)
    for header in gguf.headers:
        expected = header.pairs.get("split.tensors.count", len(names))
        if expected != len(names):
            raise bad(header.file, f"the files hold {len(names)} tensors where it says {expected}", SAME)
    return gguf


SAME = "whether all files are of the same model, version and quantisation"


def _check_place(header: GgufHeader, number: int, count: int) -> None:
    """That a file is what its name says: the one of that number, of so many."""
    says_count = header.pairs.get("split.count", 1)
    says_number = header.pairs.get("split.no", 0)
    if says_count == 0:  # what some writers say of a model in one file
        says_count = 1
    if count == 1 and says_count != 1:
        raise bad(
            header.file,
            f"it is one of {says_count} files of a model (split.count), and its name tells no others",
            "its name: they are found as NAME-00001-of-00003.gguf, in one folder",
        )
    if says_count != count:
        raise bad(header.file, f"its name says {count} files, its header (split.count) {says_count}", SAME)
    if says_number != number:
        raise bad(
            header.file,
            f"its name says file {number + 1}, its header (split.no) {_counted(says_number)}",
            "whether it was renamed; fetch the files again, under their own names",
        )


def _counted(number: Value) -> str:
    return str(number + 1) if isinstance(number, int) else str(number)[:20]
