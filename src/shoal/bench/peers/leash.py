"""Runs another program for as long as the process that started this one lives. Run as a file.

What is not ours watches no pipe: we do it in its place. The program and we are one process group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Run the program that the arguments name, and end with its exit code."""
    signal.signal(signal.SIGTERM, _wait_on)
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_after_stdin, daemon=True).start()
    code = program.wait()
    sys.exit(code if code >= 0 else 128 - code)


def _wait_on(number: int, frame: object) -> None:
    """The whole group is asked to end: the program does, and then we."""


def _end_after_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
