"""Continuous batching: what many sessions have ready goes through the span in one forward.

A decode step reads every weight for one row; eight rows of eight sessions cost little more than one. So the
batcher runs forward after forward, each with all the decode steps that are there and a slice of one prefill,
as large as those who decode will hardly notice. (Yu et al., "Orca", 2022.)
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shoal.errors import ShoalError, StepFailed
from shoal.executor.arrays import Floats, empty, join
from shoal.executor.thread import ComputeThread

MAX_ROWS = 512
"""Rows of one forward: what bounds its working memory."""
DECODE_ROWS = 8
"""A step of so many rows runs whole, beside decode steps: some tokens of speculation, or a last piece."""
ALONE_ROWS = 16
"""Rows of a prefill's slice while others decode but have nothing ready: how long they may have to wait."""
FEW_ROWS = 4
"""Rows up to which a forward is bound by memory, on most machines."""
MANY_ROWS = 32
"""Rows from which a forward is bound by arithmetic, for certain."""
STRETCH = 1.8
"""How much longer a prefill may make the forwards of those who decode: their tokens come so much later."""
LEAST_ROWS = 4
"""Rows by which a prefill advances in every forward, however many decode: it does not starve either."""
QUIET_S = 5.0
"""For so long after its last step a session that decodes is thought of when a prefill is sliced."""
LATE_S = 0.05
"""The longest that a forward waits for sessions that are about to be ready."""

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Job:
    """One session's step: ``rows`` rows in, the last ``wanted`` of them out."""

    session: Hashable
    rows: int
    wanted: int
    prepare: Callable[[], Floats]
    """Gives the hidden states, float32 ``[rows, width]``; may raise a ``ShoalError``. On the thread."""
    finish: Callable[[Job, Floats], None]
    """Takes what came out, float32 ``[wanted, width]``; may raise a ``ShoalError``. On the thread."""
    failed: Callable[[ShoalError], None]
    """Told why nothing comes. On the thread."""
    asked: float = field(default_factory=time.perf_counter)
    compute_s: float = 0.0
    """Time of the forwards that its rows were part of."""
    done: int = 0
    """Rows that have been through."""
    hidden: Floats | None = None
    outs: list[Floats] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Rows that have not been through."""
        return self.rows - self.done


_JobT = TypeVar("_JobT", bound=Job)


@dataclass(frozen=True, slots=True)
class JobSlice(Generic[_JobT]):
    """Rows of a job that go into one forward."""

    job: _JobT
    first: int
    """Which of the job's rows is the first of these."""
    hidden: Floats
    """float32 ``[n, width]``"""


ForwardOutput = Floats | ShoalError
"""float32 ``[n, …]``, a row for each that went in, or why a piece came to nothing."""
Forward = Callable[[Sequence[JobSlice[_JobT]]], list[ForwardOutput]]


@dataclass(slots=True)
class ForwardTimes:
    """How long forwards take, smoothed: the roofline of this span on this machine. 0 before the first."""

    fixed: float = 0.0
    """Seconds of a forward of a few rows: the weights are read."""
    per_row: float = 0.0
    """Seconds for each row of a forward of many: the arithmetic is done."""

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a forward of ``rows`` rows."""
        if rows <= FEW_ROWS:
            self.fixed = _smooth(self.fixed, seconds)
        elif rows >= MANY_ROWS:
            self.per_row = _smooth(self.per_row, seconds / rows)

    @property
    def ridge(self) -> float:
        """Rows up to which a forward takes no longer than with one."""
        return self.fixed / self.per_row if self.per_row else 0.0


@dataclass(slots=True)
class Rhythm:
    """When a session that decodes last left, and for how long it is usually away. Seconds."""

    left: float
    away: float = 0.0

    def due(self, now: float, until: float) -> bool:
        """Whether it is expected back by ``until``, and not so late that something must have happened."""
        return bool(self.away) and self.left + self.away <= until and now < self.left + 2 * self.away + 0.002


def _smooth(old: float, new: float) -> float:
    return new if not old else 0.8 * old + 0.2 * new


def slice_rows(times: ForwardTimes, decoding: int, others: bool) -> int:
    """Rows of a prefill that go into one forward.

    Beside ``decoding`` decode steps, so many that the forward takes ``STRETCH`` times as long as with the
    decode steps alone. When others decode but are elsewhere just now, a bounded slice; when there is nobody
    else, all that a forward holds.
    """
    if not decoding:
        return ALONE_ROWS if others else MAX_ROWS
    rows = int(STRETCH * max(times.ridge, decoding)) - decoding
    return max(LEAST_ROWS, min(ALONE_ROWS, rows))


def choose_batch(
    ready: Sequence[_JobT], times: ForwardTimes, others: bool, *, sliced: bool
) -> list[tuple[_JobT, int]]:
    """What goes into the next forward: jobs, each with how many of its rows. Unless ``sliced``, all of them.

    Every decode step that is ready, and a slice of one prefill. ``ready`` is in the order in which sessions
    were last served, so of several prefills the one that has waited longest has its turn.
    """
    chosen: list[tuple[_JobT, int]] = []
    room = MAX_ROWS
    for job in ready:
        if job.left <= DECODE_ROWS and job.left <= room:
            chosen.append((job, job.left))
            room -= job.left
    prefill = next((job for job in ready if job.left > DECODE_ROWS), None)
    if prefill is not None and room:
        rows = min(slice_rows(times, len(chosen), others), room) if sliced else prefill.left
        chosen.append((prefill, min(prefill.left, rows)))
    return chosen


class Batcher(Generic[_JobT]):
    """Runs the steps of many sessions on the thread that computes. Steps are submitted from any thread."""

    def __init__(self, forward: Forward[_JobT], thread: ComputeThread, *, sliced: bool) -> None:
        self._forward = forward
        self._sliced = sliced
        self._thread = thread
        self._news = threading.Condition()
        self._queues: OrderedDict[Hashable, deque[_JobT]] = OrderedDict()
        """Steps that wait, by session, of which only the first may run. Those served last come last."""
        self._rhythms: dict[Hashable, Rhythm] = {}
        self._ended: list[Callable[[], None]] = []
        self._after: list[Callable[[], None]] = []
        self._turning = False
        self._times = ForwardTimes()

    def submit(self, job: _JobT) -> None:
        """Have a step run. Steps of one session run in the order in which they come."""
        with self._news:
            self._queues.setdefault(job.session, deque()).append(job)
            rhythm = self._rhythms.get(job.session)
            if rhythm is not None:
                rhythm.away = _smooth(rhythm.away, job.asked - rhythm.left)
            self._wake()

    def end(self, session: Hashable, release: Callable[[], None]) -> None:
        """Drop what a session has waiting. ``release`` runs on the thread, before the next forward begins."""
        with self._news:
            self._queues.pop(session, None)
            self._rhythms.pop(session, None)
            self._ended.append(release)
            self._wake()

    def after(self, function: Callable[[], None]) -> None:
        """Have ``function`` run once all results of this forward are given. To be called by ``finish``."""
        self._after.append(function)

    def _finish(self) -> None:
        for function in self._after:
            function()
        self._after.clear()

    def _wake(self) -> None:
        self._news.notify()
        if not self._turning:
            self._turning = True
            self._thread.post(self._turn)

    def _turn(self) -> None:
        """One forward with what is ready."""
        with self._news:
            self._release()
            self._await_others()
            self._release()
            ready = [queue[0] for queue in self._queues.values()]
            chosen = choose_batch(ready, self._times, self._anybody_decodes(), sliced=self._sliced)
        batch = self._prepared(chosen)
        if batch:
            self._run(batch)
        self._finish()
        with self._news:
            self._turning = bool(self._queues or self._ended)
            if self._turning:
                self._thread.post(self._turn)

    def _release(self) -> None:
        for release in self._ended:
            release()
        self._ended.clear()

    def _await_others(self) -> None:
        """Wait for sessions that are nearly here: to run them apart would cost a forward's fixed time again.

        The wait is never longer than that time, so it never costs more than twice what it could save.
        """
        if not self._queues:
            return
        until = time.perf_counter() + min(self._times.fixed, LATE_S)
        while (now := time.perf_counter()) < until:
            if not any(
                rhythm.due(now, until)
                for session, rhythm in self._rhythms.items()
                if session not in self._queues
            ):
                return
            self._news.wait(until - now)

    def _anybody_decodes(self) -> bool:
        now = time.perf_counter()
        return any(
            now - rhythm.left < QUIET_S
            for session, rhythm in self._rhythms.items()
            if session not in self._queues
        )

    def _prepared(self, chosen: list[tuple[_JobT, int]]) -> list[JobSlice[_JobT]]:
        batch: list[JobSlice[_JobT]] = []
        for job, rows in chosen:
            try:
                if job.hidden is None:
                    job.hidden = job.prepare()
            except ShoalError as error:
                self._leave(job, error)
            else:
                whole = rows == job.rows
                hidden = job.hidden if whole else job.hidden[job.done : job.done + rows]
                batch.append(JobSlice(job, job.done, hidden))
        return batch

    def _run(self, batch: list[JobSlice[_JobT]]) -> None:
        began = time.perf_counter()
        try:
            outcomes = self._forward(batch)
        except Exception as error:
            # A defect of ours, or a shortage of the machine's, ends these steps and never the node.
            log.exception("a forward failed")
            outcomes = [StepFailed(f"the forward failed: {type(error).__name__}: {error}")] * len(batch)
        seconds = time.perf_counter() - began
        self._times.note(sum(len(piece.hidden) for piece in batch), seconds)
        for piece, outcome in zip(batch, outcomes, strict=True):
            piece.job.compute_s += seconds
            if isinstance(outcome, ShoalError):
                self._leave(piece.job, outcome)
            else:
                self._advance(piece.job, outcome)

    def _advance(self, job: _JobT, out: Floats) -> None:
        unwanted = job.rows - job.wanted - job.done
        if unwanted < len(out):
            job.outs.append(out[unwanted:] if unwanted > 0 else out)
        job.done += len(out)
        if job.left:
            with self._news:
                if job.session in self._queues:
                    self._queues.move_to_end(job.session)
            return
        self._leave(job, None)

    def _leave(self, job: _JobT, error: ShoalError | None) -> None:
        """A step is over. One whose session has ended meanwhile is nobody's any more."""
        with self._news:
            queue = self._queues.get(job.session)
            if queue is None or queue[0] is not job:
                return
            queue.popleft()
            if queue:
                self._queues.move_to_end(job.session)
            else:
                del self._queues[job.session]
            if job.rows <= DECODE_ROWS:
                rhythm = self._rhythms.setdefault(job.session, Rhythm(0.0))
                rhythm.left = time.perf_counter()
        if error is None:
            try:
                job.finish(job, join(job.outs or [empty((0, 0))]))
                return
            except ShoalError as found:
                error = found
        job.failed(error)
