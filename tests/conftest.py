"""What every test stands on: a suite that runs in the background runs as in the foreground, beside others."""

from __future__ import annotations

import os
import signal

# Read when torch is imported, here and in every process that a test starts. A thread of OpenMP that waits for
# the next product looks for it for milliseconds, which is right where it has a core to itself; beside other
# tests it takes the core of those that compute. The numbers are the same.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it starts in the background, and every process that a test starts would
    # inherit that. Those must hear of the signals that tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # the same, as nohup does
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
