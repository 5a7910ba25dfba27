"""A process that answers in frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar, cast

import msgspec

from shoal.executor.graph.frames import read_frame, write_frame
from shoal.models.untrusted.watched import WatchedProcess

_Reply = TypeVar("_Reply")


class FramedProcess(WatchedProcess, Generic[_Reply]):
    """One that answers each frame with another.

    Args:
        command, folder: as of :class:`WatchedProcess`.
        replies: reads what it answers.
    """

    def __init__(
        self,
        command: Sequence[str],
        replies: msgspec.msgpack.Decoder[_Reply],
        folder: Path | None = None,
    ) -> None:
        super().__init__(command, folder)
        self._replies = replies

    def exchange(
        self, asked: msgspec.Struct, payload: bytes, within_s: float
    ) -> tuple[_Reply, bytearray] | None:
        """The answer; ``None`` where the process was lost."""
        with self.answers_within(within_s):
            try:
                write_frame(cast("BinaryIO", self.stdin), asked, payload)
                frame = read_frame(cast("BinaryIO", self.stdout))
                return frame and (self._replies.decode(frame[0]), frame[1])
            except (OSError, ValueError, msgspec.DecodeError):  # it died meanwhile, or writes nonsense
                return None
