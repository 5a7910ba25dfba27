"""The one thread on which a process computes, with our kernels or with torch.

OpenMP keeps a pool of workers for every thread that enters it, so work that wandered over threads would
pay for several pools. The event loop stays free: channels answer while a forward runs.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

import outcome
import trio

ENDED_WITHIN_S = 60.0
"""How long the process waits, at its end, for what the thread is doing."""

_ResultT = TypeVar("_ResultT")


class ThreadReply(Generic[_ResultT]):
    """What one task waits for and another thread gives. Made by the task that waits."""

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self._loop = trio.lowlevel.current_trio_token()
        self.wanted = True
        """Whether anybody still waits."""

    async def wait(self) -> _ResultT:
        """What was given, or the error. A task that is cancelled no longer waits."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self.wanted = False
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def give(self, result: outcome.Outcome[_ResultT]) -> None:
        """From any thread; before the loop turns again, the task must be in ``wait``."""
        with suppress(trio.RunFinishedError):  # the loop has ended and nobody waits
            # Not rescheduled from here: a task may only be woken by the loop's own thread.
            self._loop.run_sync_soon(self._finish, result)

    def _finish(self, result: outcome.Outcome[_ResultT]) -> None:
        if self.wanted:
            # Once only: a task that is rescheduled twice ends the whole loop.
            self.wanted = False
            trio.lowlevel.reschedule(self._task, result)


class ComputeThread:
    """Runs functions one at a time, in the order asked, on its own thread."""

    def __init__(self, name: str = "torch") -> None:
        self._at_work = threading.Lock()  # held while a function runs
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def post(self, function: Callable[[], None]) -> None:
        """Have ``function`` run in its turn, and do not wait. It must not raise."""
        self._jobs.put(function)

    def borrow(self) -> bool:
        """Keep the thread from its work, if it has none now: what it alone may touch is then the caller's.

        Returns:
            Whether that came about. Then the caller must :meth:`give_back`, and soon.
        """
        return self._jobs.empty() and self._at_work.acquire(blocking=False)

    def give_back(self) -> None:
        """Let the thread go on."""
        self._at_work.release()

    async def run(self, function: Callable[[], _ResultT]) -> _ResultT:
        """What ``function`` returns or raises.

        A caller that is cancelled no longer waits; a function that has not begun is then not run.
        """
        reply = ThreadReply[_ResultT]()
        self.post(partial(_answer, reply, function))
        return await reply.wait()

    def close(self) -> None:
        """Let the thread end after what it is doing now."""
        self._jobs.put(None)

    def _end(self) -> None:
        """A thread that Python ends in the midst of torch's C++ takes the process with it (SIGABRT)."""
        self.close()
        self._thread.join(ENDED_WITHIN_S)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._at_work:
                job()
        atexit.unregister(self._end)


def _answer(reply: ThreadReply[_ResultT], function: Callable[[], _ResultT]) -> None:
    if reply.wanted:
        reply.give(outcome.capture(function))
