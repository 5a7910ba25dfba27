"""The process that imports a graph. Run as a module.

Its constants may fold to more than any memory holds, its checks may take hours, and what reads it is C++.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

import msgspec

from shoal.errors import ShoalError
from shoal.models.graph.import_messages import ImportedReply, ImportFault, ImportReply, ImportRequest
from shoal.models.graph.manifest import MANIFEST_FILE, read_graph_manifest, write_graph_manifest
from shoal.models.store.disk import is_full
from shoal.models.untrusted.limits import first_to_go, limit_memory

MEMORY = 1 << 30
"""Bytes beside the graph's own: the libraries, and what its constants are folded to."""
COPIES = 8
"""How often all of a graph is in memory at a time: as bytes, parsed, in the runtime, optimised, and
packed."""
LONGEST_S = 1800
"""Who asks has a shorter deadline and kills us; this is for when they were killed."""


def main() -> None:
    first_to_go()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print, and what they print is no answer
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while True:
        asked = msgspec.json.decode(requests.get(), type=ImportRequest)
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        answers.write(msgspec.json.encode(_answer(asked)) + b"\n")
        answers.flush()


def limit_for(size: int) -> None:
    """Let this process take from now on what a graph of so many bytes may need."""
    limit_memory(MEMORY + COPIES * size, "DATA")


def _read(requests: SimpleQueue[bytes]) -> None:
    """Take requests, and end this process at once when who sent them is gone."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(1)


def _answer(asked: ImportRequest) -> ImportReply:
    try:
        file, folder = Path(asked.file), Path(asked.folder)
        limit_for(file.stat().st_size)
        from shoal.models.graph.optimised import import_graph  # noqa: PLC0415 - libraries count against the limit

        raw = write_graph_manifest(import_graph(file, folder, asked.threads, limit_for))
        read_graph_manifest(raw)  # what others would refuse is refused here
        (folder / MANIFEST_FILE).write_bytes(raw)
        return ImportedReply()
    except ShoalError as error:
        return ImportFault(error.code, error.message, error.check, error.next_command)
    except MemoryError:
        return ImportFault("memory", f"it needs more than {MEMORY >> 30} GiB of memory beside its weights")
    except Exception as error:  # noqa: BLE001 - whatever a stranger's file leads to is told
        if is_full(error):
            return ImportFault("full", "")
        told = (str(error).splitlines() or [""])[0][:200]
        return ImportFault("failure", f"{type(error).__name__}: {told}")


if __name__ == "__main__":
    main()
