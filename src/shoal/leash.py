"""Runs another program for as long as the process that started this one lives. Run as a file, with ``-P``.

What is not ours watches no pipe: we do it in its place, at our stdin. As the first of a process group we end
the whole group, with all that the program has started; else the program alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Run the program that the arguments name, and end with its exit code."""
    for asking in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asking, _wait_on)
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_after_stdin, args=(program,), daemon=True).start()
    code = program.wait()
    sys.exit(code if code >= 0 else 128 - code)


def _wait_on(number: int, frame: object) -> None:
    """The whole group is asked to end: the program does, and then we."""


def _end_after_stdin(program: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    program.kill()


if __name__ == "__main__":
    main()
