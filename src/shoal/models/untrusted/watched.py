"""A process of ours that reads what strangers wrote, and the thread that ends it when its answer is late."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shoal import process_environ

TICK_S = 0.25
"""How often a process that has to answer is looked at. A timer for each request would cost ten times as much
as the request."""


class WatchedProcess:
    """A Python process with nothing of our environment, that is spoken with over its stdin and stdout.

    Args:
        command: what follows the interpreter: a file, or ``-m`` and a module.
        folder: that it works in; by default ours.
    """

    def __init__(self, command: Sequence[str], folder: Path | None = None) -> None:
        self.process = subprocess.Popen(
            # -I: no environment, no user packages, nothing from the working folder.
            [sys.executable, "-I", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=process_environ.bare_environ(),
            cwd=folder,
            start_new_session=True,  # a Ctrl-C is for us, and not for what runs there
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin: IO[bytes] = self.process.stdin
        self.stdout: IO[bytes] = self.process.stdout
        self.late = False
        """Whether it was ended because its answer had not come in time."""
        self._due = math.inf
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="shoal-child", daemon=True).start()

    @contextmanager
    def answers_within(self, seconds: float) -> Generator[None]:
        """End the process if the block takes longer: whoever reads from it then finds the end."""
        self._due = time.monotonic() + seconds
        try:
            yield
        finally:
            self._due = math.inf

    def end(self) -> None:
        """End the process and wait for that."""
        self._over.set()
        self.process.kill()
        self.process.wait()
        for pipe in (self.stdin, self.stdout):
            with suppress(OSError, ValueError):  # what it did not read is lost with it
                pipe.close()

    def _watch(self) -> None:
        while not self._over.wait(TICK_S):
            if time.monotonic() > self._due:
                self.late = True
                self.process.kill()
                return
