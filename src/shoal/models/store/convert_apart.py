"""A GGUF file that a stranger wrote, read and converted in a process of its own."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from shoal.errors import BadWeights, ModelError, UnsupportedModel
from shoal.models.gguf.names import shards
from shoal.models.store.convert_messages import (
    ConvertedReply,
    ConvertRequest,
    GgufFault,
    GgufProgress,
    GgufReply,
    GgufRequest,
    SizeReply,
    SizeRequest,
)
from shoal.models.untrusted.child import PROGRESS, Child, Ended
from shoal.progress import Progress, silent

PROGRAM = "shoal.models.store.convert_child"
STARTS_WITHIN_S = 60.0
SILENT_S = 120.0
"""The longest that reading the header, or making the tokenizer, may take. The largest take ten seconds."""
BYTES_S = 10e6
"""How much of the file is converted in a second at least, while nothing is told of it."""
LONGEST_REPLY = 1 << 16
ERRORS: dict[str, type[ModelError]] = {error.code: error for error in (BadWeights, UnsupportedModel)}

_Reply = TypeVar("_Reply", SizeReply, ConvertedReply)


class GgufConverter:
    """One file of a model, or any one of several that it is split into. Close it afterwards."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._child = Child(["-m", PROGRAM], longest_answer=LONGEST_REPLY, starts_within_s=STARTS_WITHIN_S)

    def size(self) -> int:
        """Bytes that are written for it. Raises as :meth:`convert`."""
        return self._ask(SizeRequest(str(self._file.absolute())), SizeReply, silent).size

    def convert(self, folder: Path, progress: Progress, *, take: bool = False) -> None:
        """Write ``folder``, as :func:`shoal.models.store.convert.convert_gguf` says.

        Raises:
            UnsupportedModel: neither we nor transformers know the architecture.
            BadWeights: a file is damaged or missing, or takes too long, too much memory, or a library down.
            OSError: the disk is full.
        """
        asked = ConvertRequest(str(self._file.absolute()), str(folder.absolute()), take)
        self._ask(asked, ConvertedReply, progress)

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _ask(self, asked: GgufRequest, wanted: type[_Reply], progress: Progress) -> _Reply:
        def tell(line: bytes) -> None:
            told = msgspec.json.decode(line.removeprefix(PROGRESS), type=GgufProgress)
            progress(told.label, told.done, told.total)

        size = sum(path.stat().st_size for path in shards(self._file) if path.is_file())
        try:
            line = self._child.ask(msgspec.json.encode(asked), SILENT_S + size / BYTES_S, tell)
            reply: GgufReply = msgspec.json.decode(line, type=GgufReply)
        except Ended as error:
            raise self._failed(str(error)) from error
        except msgspec.DecodeError as error:
            raise self._failed("its process answers nonsense") from error
        if isinstance(reply, GgufFault):
            if reply.kind == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))
            kind = ERRORS.get(reply.kind)
            if kind is None:
                raise self._failed(reply.message)
            raise kind(reply.message, check=reply.check, next_command=reply.next_command)
        if not isinstance(reply, wanted):
            raise self._failed("its process answers something else")
        return reply

    def _failed(self, why: str) -> BadWeights:
        return BadWeights(
            f"{self._file} cannot be converted: {why}",
            check="check that the file comes from a source you trust",
        )
