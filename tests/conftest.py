"""What every test stands on: a suite that runs in the background runs as in the foreground."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it starts in the background, and every process that a test starts would
    # inherit that. Those must hear of the signals that tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # the same, as nohup does
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
