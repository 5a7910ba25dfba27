"""The process that converts a GGUF file. Run as a module.

Its header may claim millions of tokens, of which a library in Rust makes a tokenizer: it may panic, abort,
need hours, or gigabytes. All of it is here.
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
from shoal.models.store.convert import convert_gguf, converted_size
from shoal.models.store.convert_messages import (
    ConvertedReply,
    GgufFault,
    GgufProgress,
    GgufReply,
    GgufRequest,
    SizeReply,
    SizeRequest,
)
from shoal.models.store.disk import is_full
from shoal.models.untrusted.child import PROGRESS
from shoal.models.untrusted.limits import first_to_go, limit_memory
from shoal.progress import Progress

MEMORY = 3 << 30
"""Bytes for what header and tokenizer take, and the imports. The largest of today take 1 GiB."""
WEIGHTS = 3
"""How many times transformers may hold all the weights, in float32."""
LONGEST_S = 3600
"""Without a word. Who asks has a shorter deadline and kills us; this is for when they were killed, and a
library lets no other thread run."""


def main() -> None:
    first_to_go()
    limit_memory(MEMORY, "DATA")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print, and what they print is no answer
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()

    def tell(label: str, done: int, total: int) -> None:
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        answers.write(PROGRESS + msgspec.json.encode(GgufProgress(label, done, total)) + b"\n")
        answers.flush()

    while True:
        asked = msgspec.json.decode(requests.get(), type=GgufRequest)
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        reply = _answer(asked, tell)
        answers.write(msgspec.json.encode(reply) + b"\n")
        answers.flush()


def _read(requests: SimpleQueue[bytes]) -> None:
    """Take requests, and end this process at once when who sent them is gone."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(1)


def _answer(asked: GgufRequest, tell: Progress) -> GgufReply:
    try:
        size = converted_size(Path(asked.file))
        if isinstance(asked, SizeRequest):
            return SizeReply(size)
        limit_memory(MEMORY + WEIGHTS * size, "DATA")
        convert_gguf(Path(asked.file), Path(asked.folder), tell, take=asked.take)
        return ConvertedReply()
    except ShoalError as error:
        return GgufFault(error.code, error.message, error.check, error.next_command)
    except MemoryError:
        return GgufFault("memory", f"it needs more than {MEMORY >> 30} GiB of memory")
    except BaseException as error:  # noqa: BLE001 - also panics of Rust, which are no Exception
        if is_full(error):
            return GgufFault("full", "")
        told = (str(error).splitlines() or [""])[0][:200].encode("utf-8", "replace").decode()
        return GgufFault("failure", f"{type(error).__name__}: {told}")


if __name__ == "__main__":
    main()
