"""The process that computes segments. Run as a module.

The runtime is C++, what it computes is a stranger's, and how much memory that takes depends on tensors that
other strangers send. What goes wrong with it goes wrong here, and the node lives on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shoal.errors import ShoalError, StepFailed
from shoal.executor.graph.frame_server import serve_frames
from shoal.executor.graph.frames import (
    LONGEST_PAYLOAD,
    LoadSegments,
    RunSegments,
    SegmentsDone,
    SegmentsFault,
    SegmentsRequest,
)
from shoal.models.untrusted.limits import limit_memory
from shoal.types import Span

if TYPE_CHECKING:
    from shoal.executor.graph.segments import SpanSegments

_asked: msgspec.msgpack.Decoder[SegmentsRequest] = msgspec.msgpack.Decoder(SegmentsRequest)


def main() -> None:
    worker = SegmentWorker()
    serve_frames(lambda header, payload: worker.answer(_asked.decode(header), payload))


class SegmentWorker:
    """Answers requests, one after another.

    Args:
        loaded: by default nothing, until it is asked to load.
    """

    def __init__(self, loaded: SpanSegments | None = None) -> None:
        self._loaded = loaded

    def answer(
        self, asked: SegmentsRequest, payload: bytearray
    ) -> tuple[SegmentsDone | SegmentsFault, bytes]:
        """What to say to a request, and the payload."""
        try:
            if isinstance(asked, LoadSegments):
                self._load(asked)
                return SegmentsDone(), b""
            return self._run(asked, payload)
        except ShoalError as error:
            return SegmentsFault(error.message), b""
        except MemoryError:
            return SegmentsFault("it needs more memory than this node gives to it"), b""
        except Exception as error:  # noqa: BLE001 - of the runtime's own types, by what strangers send
            return SegmentsFault((str(error).splitlines() or [type(error).__name__])[0][:400]), b""

    def _run(self, asked: RunSegments, payload: bytearray) -> tuple[SegmentsDone, bytes]:
        from shoal.executor.graph.arrays import pack_arrays, unpack_arrays  # noqa: PLC0415 - after the limits

        if self._loaded is None:
            raise StepFailed("no span is loaded")
        made = self._loaded.run(Span(asked.start, asked.end), unpack_arrays(asked.arrays, payload))
        if (size := sum(array.nbytes for array in made.values())) > LONGEST_PAYLOAD:
            raise StepFailed(f"they give {size} bytes; {LONGEST_PAYLOAD} are sent")
        specs, packed = pack_arrays(made)
        return SegmentsDone(specs), packed

    def _load(self, asked: LoadSegments) -> None:
        limit_memory(asked.memory, "DATA")
        from shoal.executor.graph.segments import load_segments  # noqa: PLC0415 - it counts against the limit

        self._loaded = load_segments(Path(asked.folder), Span(asked.start, asked.end), fast=asked.fast)


if __name__ == "__main__":
    main()
