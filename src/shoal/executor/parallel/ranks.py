"""The processes that compute a span together with ours, as rank 0 sees them: started, ordered about, watched.

Every order is carried out by all ranks at once, ours included. When one of them dies, does not answer, or
fails where the others do not, nobody can say any more what the others hold. Then all are ended, and whoever
waits in :meth:`Ranks.wait_over` is told: a node ends too, and its sessions go on at others.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec

from shoal import process_environ
from shoal.errors import ShoalError, StepFailed
from shoal.executor.parallel.messages import (
    Drop,
    OrderDone,
    OrderFailed,
    RankAnswer,
    RankOrder,
    read_answer,
    write,
)

START_S = 120.0
"""For a process to start: torch may have to come from a slow disk."""
GRACE_S = 5.0
"""How much later than ours an answer may come when one of us has failed."""
END_S = 5.0
"""For a process to end by itself."""

_ResultT = TypeVar("_ResultT")


class _Process:
    """One rank beside ours."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.answers: queue.SimpleQueue[RankAnswer | None] = queue.SimpleQueue()
        """``None`` when no more will come."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "shoal.executor.parallel.shard", str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=process_environ.child_environ(
                LOCAL_RANK=str(rank)
            ),  # by which transformers tells which GPU is its own
            start_new_session=True,  # Ctrl-C is for the node, which lets its sessions come to their end
        )

    def tell(self, line: bytes) -> None:
        """Raises ``OSError`` when it is gone."""
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def answer(self, patience_s: float) -> RankAnswer | None:
        """What it answers; ``None`` when it is gone or takes too long."""
        try:
            return self.answers.get(timeout=patience_s)
        except queue.Empty:
            return None

    def end(self) -> None:
        """Let it end by itself, or else kill it."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        self.process.kill()
        self.process.wait()


class Ranks:
    """Ranks 1 to ``count - 1``, which are started. One thread gives orders, any thread the rest."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.lost: str | None = None
        """Why there is no going on."""
        self._over = threading.Event()
        self._ours_is_done = threading.Event()
        self._writing = threading.Lock()
        self._dropped: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._processes = [_Process(rank) for rank in range(1, count)]
        for process in self._processes:
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        threading.Thread(target=self._sweep, daemon=True).start()

    def wait_started(self) -> None:
        """Raises ``StepFailed`` when one of them does not come."""
        if not all(isinstance(process.answer(START_S), OrderDone) for process in self._processes):
            raise self.lose("a process that was to compute with us did not start")

    def together(
        self, order: RankOrder, ours: Callable[[], _ResultT], patience_s: float
    ) -> tuple[_ResultT, list[OrderDone]]:
        """Have all ranks carry out ``order``, of which ``ours`` is our part.

        Args:
            patience_s: how much longer than ours their parts may take.

        Returns:
            What ``ours`` returned, and what the others answered, in order.

        Raises:
            StepFailed: the ranks are not together any more, now or since earlier.
            Exception: what ``ours`` raised, when all others have failed too.
        """
        if self._over.is_set():
            raise StepFailed(self.lost or "the processes of this span have been ended")
        # Before the order goes out: a rank that fails at once is judged by whether ours is done.
        self._ours_is_done.clear()
        failure: Exception | None = None
        result: list[_ResultT] = []
        try:
            self._tell(order)
            result.append(ours())
        except Exception as error:  # noqa: BLE001
            # A model's code, and torch's, may raise anything. What it means depends on how the others fared.
            failure = error
        self._ours_is_done.set()
        # An error of ours all will come to, each in its time; after another there may be none to come.
        alone = failure is not None and not isinstance(failure, ShoalError)
        answers = [process.answer(GRACE_S if alone else patience_s) for process in self._processes]
        done = [answer for answer in answers if isinstance(answer, OrderDone)]
        if failure is None and len(done) == len(answers):
            return result[0], done
        if failure is not None and all(isinstance(answer, OrderFailed) for answer in answers):
            raise failure
        raise self.lose(_what_happened(failure, answers)) from failure

    def drop(self, cache: int) -> None:
        """Have them forget a cache, soon. May be called while garbage is collected: it takes no lock."""
        self._dropped.put(cache)

    def lose(self, reason: str) -> StepFailed:
        """End all ranks, and so any collective that waits for them. Returns the error to raise."""
        if not self._over.is_set():
            self.lost = reason
            for process in self._processes:
                process.process.kill()
            # Last of all: whoever wakes finds the reason, and all of them killed.
            self._over.set()
        return StepFailed(self.lost or reason)

    def wait_over(self) -> str | None:
        """Wait until they are lost, or closed; why they are lost."""
        self._over.wait()
        return self.lost

    def close(self) -> None:
        """End them. Nothing is asked of them any more."""
        self._over.set()
        self._dropped.put(None)
        with self._writing:
            for process in self._processes:
                process.end()

    def _tell(self, order: RankOrder) -> None:
        line = write(order)
        with self._writing:
            for process in self._processes:
                process.tell(line)

    def _listen(self, process: _Process) -> None:
        assert process.process.stdout is not None
        reason = f"rank {process.rank} of {self.count} has ended"
        with process.process.stdout as lines:
            for line in lines:
                try:
                    answer = read_answer(line)
                except msgspec.DecodeError as error:
                    reason = f"rank {process.rank} of {self.count} cannot be understood: {error}"
                    break
                process.answers.put(answer)
                # We may wait for it in a collective to which it will not come.
                if isinstance(answer, OrderFailed) and not self._ours_is_done.wait(GRACE_S):
                    reason = f"rank {process.rank} of {self.count} failed alone: {answer.message}"
                    break
        process.answers.put(None)
        self.lose(reason)

    def _sweep(self) -> None:
        while (cache := self._dropped.get()) is not None:
            with suppress(OSError, ValueError):  # it is gone, and its caches with it
                self._tell(Drop(cache))


def _what_happened(failure: Exception | None, answers: Sequence[RankAnswer | None]) -> str:
    told = [
        f"rank {rank} {answer.message if isinstance(answer, OrderFailed) else 'does not answer'}"
        for rank, answer in enumerate(answers, 1)
        if not isinstance(answer, OrderDone)
    ]
    ours = [f"rank 0 {type(failure).__name__}: {failure}"] if failure else []
    return f"the {len(answers) + 1} processes of this span are not together any more: " + "; ".join(
        ours + told
    )
