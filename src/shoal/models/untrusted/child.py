"""A process of its own for what strangers wrote: requests out, answers back, one line each, on a short leash.

What runs in it may panic, abort, fill its memory or never end. Then that process is lost, one request gets an
error, and the next starts another.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from shoal.errors import Busy
from shoal.models.untrusted.watched import WatchedProcess

WAITING = 24
"""Callers of one process at a time. Each holds a thread, of which trio has 40 for everything."""
PROGRESS = b"+"
"""What a line begins with that is no answer yet, and tells how far the process has come."""


class Ended(Exception):
    """The process gave no answer; its text says what is known of why."""


class Child:
    """One process, started when it is first asked, and again after it was lost. From any thread."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        longest_answer: int,
        starts_within_s: float = 0.0,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            command: what follows the interpreter: a file, or ``-m`` and a module.
            longest_answer: bytes.
            starts_within_s: how much longer a request may take when the process has to start for it.
            folder: that it works in; by default ours.
        """
        self._command = command
        self._folder = folder
        self._longest_answer = longest_answer
        self._starts_within_s = starts_within_s
        self._running: _Running | None = None
        self._ending: weakref.finalize[..., Child] | None = None
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(WAITING)

    @property
    def pid(self) -> int | None:
        """The process as it is now, if there is one."""
        running = self._running
        return running.process.pid if running is not None else None

    def ask(self, request: bytes, within_s: float, progress: Callable[[bytes], None] | None = None) -> bytes:
        """The line that answers ``request``, a line without its end.

        Args:
            within_s: the longest without a line.
            progress: called with each line that tells of progress, where the process sends such lines.

        Raises:
            Ended: the process died, did not answer in time, or answered too much.
            Busy: too many others wait for it.
        """
        if not self._room.acquire(blocking=False):
            raise Busy(
                f"{WAITING} requests wait for this model's text to be read", check="try again in a second"
            )
        try:
            with self._lock:
                return self._exchange(request, within_s, progress)
        finally:
            self._room.release()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _exchange(self, request: bytes, within_s: float, progress: Callable[[bytes], None] | None) -> bytes:
        if self._running is None or self._running.process.poll() is not None:
            self._end()
            self._running = running = _Running(self._command, self._folder)
            self._ending = weakref.finalize(self, running.end)  # also when this process ends
            within_s += self._starts_within_s
        running = self._running
        try:
            line = running.exchange(request, within_s, self._longest_answer)
            while progress is not None and line.startswith(PROGRESS) and line.endswith(b"\n"):
                progress(line)
                line = running.next_line(within_s, self._longest_answer)
        except BaseException:
            self._end()  # an answer would come that nobody has asked for
            raise
        if line.endswith(b"\n"):
            return line
        self._end()
        if running.late:
            raise Ended(f"it did not end within {within_s:.0f} s")
        raise Ended(
            f"it answered more than {self._longest_answer >> 20} MiB"
            if line
            else "it crashed, or filled its memory"
        )

    def _end(self) -> None:
        self._running = None
        if self._ending is not None:
            self._ending()


class _Running(WatchedProcess):
    """A process that answers in lines."""

    def exchange(self, request: bytes, within_s: float, longest: int) -> bytes:
        """What the process answers, up to the end of the line; less where it was ended."""
        with self.answers_within(within_s):
            try:
                self.stdin.write(request + b"\n")
                self.stdin.flush()
            except OSError:  # it died while we wrote
                return b""
        return self.next_line(within_s, longest)

    def next_line(self, within_s: float, longest: int) -> bytes:
        """The next line that comes; less where the process was ended."""
        with self.answers_within(within_s):
            return self.stdout.readline(longest)
