"""A span of a graph, run in a process that is started when it is needed, and again after it was lost."""

from __future__ import annotations

import weakref
from typing import Protocol

import msgspec

from shoal.errors import BadWeights, StepFailed
from shoal.executor.graph.framed_process import FramedProcess
from shoal.executor.graph.frames import LoadSegments, RunSegments, SegmentsDone, SegmentsReply
from shoal.models.graph.graph_store import LocalGraph
from shoal.types import Span
from shoal.wire.inferring import ArraySpec

PROGRAM = "shoal.executor.graph.child"
LOADS_WITHIN_S = 120.0
LOADED_BYTES_S = 20e6
"""How much of the weights is loaded in a second at least."""
BASE_MEMORY = 256 << 20
"""Bytes that the process takes before it has loaded anything: Python, numpy and the runtime."""
_replies: msgspec.msgpack.Decoder[SegmentsReply] = msgspec.msgpack.Decoder(SegmentsReply)


class SegmentRunner(Protocol):
    """Computes a span's segments, one request at a time; from one thread."""

    @property
    def span(self) -> Span: ...

    def load(self) -> None:
        """Load the span, unless that is done. Raises BadWeights: it cannot be loaded."""
        ...

    def run(
        self, span: Span, arrays: tuple[ArraySpec, ...], payload: bytes
    ) -> tuple[tuple[ArraySpec, ...], bytes]:
        """What segments ``span`` give. Raises StepFailed, BadWeights: as :meth:`GraphRunner.run`."""
        ...

    def close(self) -> None:
        """Compute nothing any more; from any thread."""
        ...


class GraphRunner:
    """Computes a span's segments, one request at a time; from one thread. Close it afterwards.

    Args:
        memory: bytes that the process may take beside :data:`BASE_MEMORY`: weights, tensors, and what the
            runtime keeps of both.
        within_s: the longest that a request may be computed.
        fast: optimise the span by itself: its bits are others then.
    """

    def __init__(
        self, graph: LocalGraph, span: Span, *, memory: int, within_s: float, fast: bool = False
    ) -> None:
        self.graph = graph
        self._span = span
        self._fast = fast
        self._memory = memory
        self._within_s = within_s
        self._process: FramedProcess[SegmentsReply] | None = None
        self._closed = False
        self._ending: weakref.finalize[..., GraphRunner] | None = None

    @property
    def span(self) -> Span:
        return self._span

    @property
    def pid(self) -> int | None:
        """The process as it is now, if there is one."""
        return self._process.process.pid if self._process else None

    def load(self) -> None:
        """Start the process and load the span, unless that is done.

        Raises:
            BadWeights: the files are damaged, or do not fit into the memory.
        """
        if self._process is not None and self._process.process.poll() is None:
            return
        if self._closed:
            raise StepFailed("this node has ended")
        self._end()
        self._process = process = FramedProcess(["-m", PROGRAM], _replies)
        self._ending = weakref.finalize(self, process.end)
        size = self.graph.weight_bytes(self._span)
        asked = LoadSegments(
            str(self.graph.folder), self._span.start, self._span.end, self._memory + BASE_MEMORY, self._fast
        )
        reply = process.exchange(asked, b"", LOADS_WITHIN_S + size / LOADED_BYTES_S)
        if reply is None or not isinstance(reply[0], SegmentsDone):
            self._end()
            why = reply[0].message if reply is not None else "its process ended"  # type: ignore[union-attr]
            raise BadWeights(
                f"segments {self._span} of {self.graph.name} cannot be loaded: {why}",
                check=f"check that {size >> 20} MiB of weights fit into --memory; remove the imported graph, "
                "and import it again",
            )

    def run(
        self, span: Span, arrays: tuple[ArraySpec, ...], payload: bytes
    ) -> tuple[tuple[ArraySpec, ...], bytes]:
        """What segments ``span`` give: what is declared, and the payload.

        Raises:
            StepFailed: the graph cannot use these tensors, or takes too much time or memory for them.
            BadWeights: as :meth:`load`.
        """
        self.load()
        assert self._process is not None
        reply = self._process.exchange(RunSegments(span.start, span.end, arrays), payload, self._within_s)
        if reply is None:
            late = self._process.late
            self._end()
            raise StepFailed(
                f"segments {span} took longer than {self._within_s:.0f} s"
                if late
                else f"the process that computed segments {span} crashed, or filled its memory"
            )
        header, made = reply
        if not isinstance(header, SegmentsDone):
            raise StepFailed(f"segments {span}: {header.message}")
        return header.arrays, bytes(made)

    def close(self) -> None:
        """End the process, from any thread; what it computes now fails, and nothing is computed any more."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        self._process = None
        if self._ending is not None:
            self._ending()
