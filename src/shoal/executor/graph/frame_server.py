"""The side of a process that answers frames: one after another, until who asks is gone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import BinaryIO, NoReturn, cast

import msgspec

from shoal.executor.graph.frames import read_frame, write_frame
from shoal.models.untrusted.limits import first_to_go

AnswerFrame = Callable[[bytes, bytearray], tuple[msgspec.Struct, bytes]]
"""Makes the header and the payload of an answer of those of a request."""


def serve_frames(answer: AnswerFrame) -> NoReturn:
    """Answer what comes by standard input. This process is the first to go where memory is short."""
    first_to_go()
    requests: SimpleQueue[tuple[bytes, bytearray]] = SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print, and what they print is no answer
    while True:
        reply, made = answer(*requests.get())
        write_frame(answers, reply, made)
        del made


def _read(requests: SimpleQueue[tuple[bytes, bytearray]]) -> None:
    """Take requests, and end this process at once when the node is gone: nobody wants what is computed."""
    while (frame := read_frame(cast("BinaryIO", sys.stdin.buffer))) is not None:
        requests.put(frame)  # one at a time: the node sends the next when it has the answer
        del frame
    os._exit(1)
