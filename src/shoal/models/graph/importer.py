"""A graph that a stranger wrote, imported in a process of its own."""

from __future__ import annotations

import errno
import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from shoal.errors import BadWeights, IncompatibleLibrary, ModelError, UnsupportedModel
from shoal.models.graph.import_messages import ImportFault, ImportReply, ImportRequest
from shoal.models.untrusted.child import Child, Ended

PROGRAM = "shoal.models.graph.import_child"
STARTS_WITHIN_S = 60.0
SILENT_S = 120.0
"""The longest that an import may take, beside what its size asks for. A U-Net of 860 MB takes twenty
seconds."""
BYTES_S = 10e6
LONGEST_REPLY = 1 << 16
ERRORS: dict[str, type[ModelError]] = {error.code: error for error in (BadWeights, UnsupportedModel)}


def check_runtime() -> None:
    """Find out whether graphs can be run here.

    Raises:
        IncompatibleLibrary: what the extra brings is not installed.
    """
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        raise IncompatibleLibrary(
            "graphs need onnx and onnxruntime, which are not installed",
            check="install the extra: pip install 'shoal[graph]'",
            next_command="shoal version",
        )


def import_apart(file: Path, folder: Path, threads: int, *, within_s: float = SILENT_S) -> None:
    """Import a graph's file into a folder.

    Raises:
        BadWeights, UnsupportedModel: as :func:`shoal.models.graph.optimised.import_graph`; or it takes too
        long,
            too much memory, or a library down.
        OSError: the disk is full, or the file cannot be read.
        IncompatibleLibrary: the extra is not installed.
    """
    check_runtime()
    size = file.stat().st_size
    asked = msgspec.json.encode(ImportRequest(str(file.absolute()), str(folder.absolute()), threads))
    # The runtime takes the folder that it works in for the graph's: there is nothing in it to be read.
    with TemporaryDirectory(prefix="shoal-import-") as empty:
        reply = _asked(file, asked, Path(empty), within_s + size / BYTES_S)
    if isinstance(reply, ImportFault):
        if reply.kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        kind = ERRORS.get(reply.kind)
        if kind is None:
            raise _failed(file, reply.message)
        raise kind(reply.message, check=reply.check, next_command=reply.next_command)


def _asked(file: Path, request: bytes, empty: Path, within_s: float) -> ImportReply:
    """What a new process answers, which works in an empty folder."""
    child = Child(
        ["-m", PROGRAM], longest_answer=LONGEST_REPLY, starts_within_s=STARTS_WITHIN_S, folder=empty
    )
    try:
        return msgspec.json.decode(child.ask(request, within_s), type=ImportReply)
    except Ended as error:
        raise _failed(file, str(error)) from error
    except msgspec.DecodeError as error:
        raise _failed(file, "its process answers nonsense") from error
    finally:
        child.close()


def _failed(file: Path, why: str) -> BadWeights:
    return BadWeights(
        f"{file} cannot be imported: {why}", check="check that the file comes from a source you trust"
    )
