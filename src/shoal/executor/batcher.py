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

from shoal.errors import ShoalError, StepFailed, Superseded
from shoal.executor.arrays import Floats, empty, join
from shoal.executor.schedule import LATE_S, ForwardTimes, Rhythm, Rhythms, choose_batch
from shoal.executor.thread import ComputeThread
from shoal.types import Exactness

LONGEST_REST_S = 2.0
"""After one forward, however long that took: a step's sender does not wait for ever."""
AT_ONCE_S = 0.01
"""A decode step that takes no longer runs where it has come, on the event loop: others wait for so long."""
REST_SLICE_S = 0.02
"""Sessions are opened on the same thread, and wait no longer than this while it rests."""

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

    def uncut(self, rows: int) -> int:
        """As :class:`~shoal.executor.schedule.Unfinished` has it."""
        return rows


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


class Batcher(Generic[_JobT]):
    """Runs the steps of many sessions on the thread that computes. Steps are submitted from any thread."""

    def __init__(
        self, forward: Forward[_JobT], thread: ComputeThread, *, sliced: bool, bits: Exactness
    ) -> None:
        self._forward = forward
        self._sliced = sliced
        self._bits: Exactness = bits
        self._thread = thread
        self._news = threading.Condition()
        self._queues: OrderedDict[Hashable, deque[_JobT]] = OrderedDict()
        """Steps that wait, by session, of which only the first may run. Those served last come last."""
        self._rhythms = Rhythms()
        self._running: Sequence[_JobT] = ()  # what is in the forward under way, or about to be
        self._superseded: list[_JobT] = []
        self._ended: list[Callable[[], None]] = []
        self._after: list[Callable[[], None]] = []
        self._turning = False
        self._times = ForwardTimes()
        self._ran = (0.0, 0.0)  # when the last forward ended, and the seconds that it took
        self.share = 1.0
        """Share of the time that forwards may take, above 0: the thread rests for the remainder. So a node
        takes less of whatever device it computes on, of all its threads, needs no right of the system's for
        it, and computes the same bits."""
        self.busy_s = 0.0
        """Seconds that forwards took in all."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits, and the thread has nothing of it to do."""
        return not self._turning

    @property
    def wait_s(self) -> float:
        """For so long a forward waits for sessions that are nearly here; 0 before the first one."""
        return min(self._times.fixed, LATE_S)

    def borrow(self) -> bool:
        """Take the place of the thread that computes, if nothing waits for it or is under way.

        Returns:
            Whether the caller may run quick forwards now, and must :meth:`give_back` soon.
        """
        # A rest is the thread's to take. Where forwards take long, the loop must not wait for them.
        if self.share < 1 or not 0 < self.wait_s <= AT_ONCE_S or not self._thread.borrow():
            return False
        if not self._turning:
            return True
        self._thread.give_back()
        return False

    def give_back(self) -> None:
        """Let the thread that computes go on."""
        self._thread.give_back()

    def note_run(self, sessions: Sequence[Hashable], asked: float, began: float, ended: float) -> None:
        """Single rows of these sessions have run together, without having been submitted."""
        self._note(len(sessions), began, ended)
        with self._news:
            for session in sessions:
                self._rhythms.came(session, asked)
                self._rhythms.left(session, 1, ended)

    def note_other(self, began: float, ended: float) -> float:
        """Something else has computed in the place of a forward, and counts as one against the share.

        Returns:
            The seconds that it took.
        """
        seconds = ended - began
        self._ran = (ended, seconds)
        self.busy_s += seconds
        return seconds

    def rest_s(self, seconds: float) -> float:
        """For how long the thread rests after what took so long."""
        return min(seconds * (1 / self.share - 1), LONGEST_REST_S)

    def rhythm(self, session: Hashable) -> Rhythm:
        """When a session's last step was done, and how long it is usually away."""
        return self._rhythms.of(session)

    def submit(self, job: _JobT, supersedes: Callable[[_JobT], bool] = lambda _: False) -> None:
        """Have a step run. Steps of one session run in the order in which they come.

        Args:
            supersedes: whether a step of the session that still waits has become useless with this one; it
                fails with ``Superseded``, without a forward.
        """
        with self._news:
            waiting = self._queues.setdefault(job.session, deque())
            while waiting and waiting[-1] not in self._running and supersedes(waiting[-1]):
                self._superseded.append(waiting.pop())
            waiting.append(job)
            self._rhythms.came(job.session, job.asked)
            self._wake()

    def end(self, session: Hashable, release: Callable[[], None]) -> None:
        """Drop what a session has waiting. ``release`` runs on the thread, before the next forward begins."""
        with self._news:
            self._queues.pop(session, None)
            self._superseded = [job for job in self._superseded if job.session != session]
            self._rhythms.forget(session)
            self._ended.append(release)
            self._wake()

    def after(self, function: Callable[[], None]) -> None:
        """Have ``function`` run once all results of this forward are given. To be called by ``finish``."""
        self._after.append(function)

    def _finish(self) -> None:
        functions, self._after = self._after, []
        for function in functions:
            try:
                function()
            except Exception:  # as in _run
                log.exception("what follows a forward failed")

    def _wake(self) -> None:
        self._news.notify()
        if not self._turning:
            self._turning = True
            self._thread.post(self._turn)

    def _turn(self) -> None:
        """One forward with what is ready."""
        if self._rests():
            self._thread.post(self._turn)  # behind whatever else the thread is asked for
            return
        with self._news:
            self._release()
            self._await_others()
            # Again: sessions that ended while we waited give their pages back before a forward takes any.
            self._release()
            ready = [queue[0] for queue in self._queues.values()]
            others = self._rhythms.any_decodes(time.perf_counter(), self._queues)
            chosen = choose_batch(ready, self._times, others, sliced=self._sliced, bits=self._bits)
            self._running = [job for job, _ in chosen]
            superseded, self._superseded = self._superseded, []
        for job in superseded:
            job.failed(Superseded("a later step goes back to before this one"))
        # Not under the lock: whoever submits a step must not wait for the decoding of others.
        batch = self._prepared(chosen)
        if batch:
            self._run(batch)
        self._finish()
        with self._news:
            self._running = ()
            # What was submitted during the forward has posted no turn: it is found here, under its lock.
            self._turning = bool(self._queues or self._ended)
            if self._turning:
                self._thread.post(self._turn)

    def _rests(self) -> bool:
        """Whether forwards have had their share for now; then a part of the rest is over on return."""
        ended, took = self._ran
        rest = self.rest_s(took)
        left = min(ended + rest - time.perf_counter(), rest)
        if left <= 0:
            return False
        time.sleep(min(left, REST_SLICE_S))
        return True

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
        until = time.perf_counter() + self.wait_s
        while (now := time.perf_counter()) < until:
            if not self._rhythms.any_due(now, until, self._queues):
                return
            self._news.wait(until - now)

    def _prepared(self, chosen: list[tuple[_JobT, int]]) -> list[JobSlice[_JobT]]:
        batch: list[JobSlice[_JobT]] = []
        for job, rows in chosen:
            try:
                if job.hidden is None:
                    job.hidden = job.prepare()
            except ShoalError as error:
                self._leave(job, error)
            except Exception as error:  # as in _run
                log.exception("a step could not be read")
                self._leave(job, _defect("a step could not be read", error))
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
            outcomes = [_defect("the forward failed", error)] * len(batch)
        seconds = self._note(sum(len(piece.hidden) for piece in batch), began, time.perf_counter())
        for piece, outcome in zip(batch, outcomes, strict=True):
            piece.job.compute_s += seconds
            if isinstance(outcome, ShoalError):
                self._leave(piece.job, outcome)
            else:
                self._advance(piece.job, outcome)

    def _note(self, rows: int, began: float, ended: float) -> float:
        """A forward is over; how long it took."""
        seconds = ended - began
        self._ran = (ended, seconds)
        self.busy_s += seconds
        self._times.note(rows, seconds)
        return seconds

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
            self._rhythms.left(job.session, job.rows, time.perf_counter())
        if error is None:
            try:
                job.finish(job, join(job.outs or [empty((0, 0))]))
                return
            except ShoalError as found:
                error = found
            except Exception as found:  # as in _run
                log.exception("a result could not be given")
                error = _defect("a result could not be given", found)
        job.failed(error)


def _defect(what: str, error: Exception) -> StepFailed:
    return StepFailed(f"{what}: {type(error).__name__}: {error}")
