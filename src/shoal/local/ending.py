"""What asks a process to end: a signal, or the end of the program that started it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

PATIENCE_S = 5.0
"""Between asking and asking again, and between that and the kill."""
MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)
"""What a process may be told to ignore before it starts."""


def stop_signals() -> list[signal.Signals]:
    """The signals that ask us to end: SIGTERM, and SIGINT and SIGHUP unless they were ignored at our start.

    A shell ignores SIGINT for what it runs in the background, and nohup ignores SIGHUP: whoever did that
    wants the program to go on.
    """
    asking = [number for number in MAY_BE_IGNORED if signal.getsignal(number) is not signal.SIG_IGN]
    return [signal.SIGTERM, *asking]


def how_to_end() -> str:
    """What a reader does to end this process: the signal's name where there is no terminal for Ctrl-C."""
    return "Ctrl-C" if sys.stderr.isatty() and signal.SIGINT in stop_signals() else "SIGTERM"


def end_with_stdin(patience_s: float = PATIENCE_S) -> None:
    """End this process when its stdin does: when the program that holds the other end has ended.

    The kernel closes that end however the program ended, by SIGKILL too. One that is only stopped
    (SIGSTOP) still holds it. We are asked to end as by a person: once, and again when it takes long, which
    ends open sessions; what hangs is killed.
    """
    threading.Thread(target=_end_after_stdin, args=(patience_s,), name="stdin", daemon=True).start()


def _end_after_stdin(patience_s: float) -> None:
    # A descriptor, not sys.stdin: a thread that holds the latter's lock would keep Python from ending.
    while os.read(0, 4096):
        pass
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        os.kill(os.getpid(), number)
        time.sleep(patience_s)
