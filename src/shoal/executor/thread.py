"""The one thread on which a process runs torch.

OpenMP keeps a pool of workers for every thread that enters it, so work that wandered over threads would
pay for several pools. The event loop stays free: channels answer while a forward runs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import outcome
import trio

Result = TypeVar("Result")


class TorchThread:
    """Runs functions one at a time, in the order asked, on its own thread."""

    def __init__(self, name: str = "torch") -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def post(self, function: Callable[[], None]) -> None:
        """Have ``function`` run in its turn, and do not wait. It must not raise."""
        self._jobs.put(function)

    async def run(self, function: Callable[[], Result]) -> Result:
        """What ``function`` returns or raises.

        A caller that is cancelled no longer waits; a function that has not begun is then not run.
        """
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()
        waiting = True

        def finish(result: outcome.Outcome[Result]) -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                trio.lowlevel.reschedule(task, result)

        def job() -> None:
            if not waiting:
                return
            result = outcome.capture(function)
            with suppress(trio.RunFinishedError):  # the loop has ended and nobody waits
                token.run_sync_soon(partial(finish, result))

        def abort(_: object) -> trio.lowlevel.Abort:
            nonlocal waiting
            waiting = False
            return trio.lowlevel.Abort.SUCCEEDED

        self._jobs.put(job)
        return await trio.lowlevel.wait_task_rescheduled(abort)

    def close(self) -> None:
        """Let the thread end after what it is doing now."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
