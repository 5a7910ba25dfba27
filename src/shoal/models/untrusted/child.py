"""A process of its own for what strangers wrote: requests out, answers back, one line each, on a short leash.

What runs in it may panic, abort, fill its memory or never end. Then that process is lost, one request gets an
error, and the next starts another.
"""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from shoal import config
from shoal.errors import Busy

WAITING = 24
"""Callers of one process at a time. Each holds a thread, of which trio has 40 for everything."""
TICK_S = 0.25
"""How often a process that has to answer is looked at. A timer for each request would cost ten times as much
as the request."""
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


class _Running:
    """A process, and the thread that ends it when an answer is due and has not come."""

    def __init__(self, command: Sequence[str], folder: Path | None) -> None:
        self.process = subprocess.Popen(
            # -I: no environment, no user packages, nothing from the working folder.
            [sys.executable, "-I", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=config.bare_environ(),
            cwd=folder,
            start_new_session=True,  # a Ctrl-C is for us, and not for what runs there
        )
        self.late = False
        self._due = math.inf
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="shoal-child", daemon=True).start()

    def exchange(self, request: bytes, within_s: float, longest: int) -> bytes:
        """What the process answers, up to the end of the line; less where it was ended."""
        assert self.process.stdin is not None
        self._due = time.monotonic() + within_s
        try:
            self.process.stdin.write(request + b"\n")
            self.process.stdin.flush()
            return self.next_line(within_s, longest)
        except OSError:  # it died while we wrote
            return b""
        finally:
            self._due = math.inf

    def next_line(self, within_s: float, longest: int) -> bytes:
        """The next line that comes; less where the process was ended."""
        assert self.process.stdout is not None
        self._due = time.monotonic() + within_s
        try:
            return self.process.stdout.readline(longest)
        finally:
            self._due = math.inf

    def end(self) -> None:
        self._over.set()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError, ValueError):  # what it did not read is lost with it
                    pipe.close()

    def _watch(self) -> None:
        while not self._over.wait(TICK_S):
            if time.monotonic() > self._due:
                self.late = True
                self.process.kill()
                return
