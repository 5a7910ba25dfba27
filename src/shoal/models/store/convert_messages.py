"""What the store and the process that converts a GGUF file say to each other, as JSON."""

from __future__ import annotations

import msgspec


class SizeRequest(msgspec.Struct, tag="size"):
    """How large is what would be written?"""

    file: str


class ConvertRequest(msgspec.Struct, tag="convert"):
    """Convert the file into a folder."""

    file: str
    folder: str
    take: bool


GgufRequest = SizeRequest | ConvertRequest


class SizeReply(msgspec.Struct, tag="size"):
    size: int
    """Bytes."""


class ConvertedReply(msgspec.Struct, tag="converted"):
    """The folder is written."""


class GgufFault(msgspec.Struct, tag="fault"):
    """It cannot be done."""

    kind: str
    """The code of an error of ours; ``full`` for a full disk."""
    message: str
    check: str = ""
    next_command: str = ""


GgufReply = SizeReply | ConvertedReply | GgufFault


class GgufProgress(msgspec.Struct):
    """How far it has come, as :class:`shoal.progress.Progress` is told."""

    label: str
    done: int
    total: int
