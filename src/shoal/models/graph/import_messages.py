"""What the store and the process that imports a graph say to each other, as JSON."""

from __future__ import annotations

import msgspec


class ImportRequest(msgspec.Struct):
    """Import the file into a folder."""

    file: str
    folder: str
    threads: int


class ImportedReply(msgspec.Struct, tag="imported"):
    """The folder is written."""


class ImportFault(msgspec.Struct, tag="fault"):
    """It cannot be done."""

    kind: str
    """The code of an error of ours; ``full`` for a full disk."""
    message: str
    check: str = ""
    next_command: str = ""


ImportReply = ImportedReply | ImportFault
