"""Processes that end when whoever started them does, however that was."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from shoal import leash

WATCHED = "from shoal.local.ending import end_with_stdin; end_with_stdin(0.3)"
DEAF = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGHUP)]"
STARTER = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
"""Starts a child as we start nodes, and tells its process id once it runs."""


@contextmanager
def started(*command: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A process that has started ``command``, and that child; both are gone after the block."""
    words = [sys.executable, "-c", STARTER, *command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        child = psutil.Process(int(starter.stdout.readline()))
        try:
            yield starter, child
        finally:
            starter.kill()
            if child.is_running():
                child.kill()


def python(*lines: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        "\n".join((*lines, "print('up', flush=True)", "import time; time.sleep(60)")),
    ]


def ends(process: psutil.Process, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("deaf", [False, True], ids=["heeds", "ignores"])
def test_a_child_ends_when_its_parent_is_killed(deaf: bool) -> None:
    with started(*python(DEAF if deaf else "", WATCHED)) as (parent, child):
        parent.kill()
        assert ends(child)


def test_a_frozen_child_ends_too() -> None:
    with started(*python(WATCHED)) as (parent, child):
        child.suspend()
        while child.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        parent.kill()
        assert ends(child)


def test_a_frozen_parent_is_not_taken_for_dead() -> None:
    with started(*python(WATCHED)) as (parent, child):
        parent.send_signal(signal.SIGSTOP)
        assert not ends(child, within_s=1.0)
        parent.send_signal(signal.SIGCONT)
        assert not ends(child, within_s=0.3)


def test_a_program_that_knows_nothing_of_us_ends_by_its_leash() -> None:
    with started(
        sys.executable, "-P", leash.__file__, *python("import os; print(os.getpid(), flush=True)")
    ) as (
        parent,
        child,
    ):
        (program,) = child.children()
        parent.kill()
        assert ends(program)
        assert ends(child)


def test_a_leash_in_the_group_of_others_ends_its_program_alone() -> None:
    words = [sys.executable, "-P", leash.__file__, *python()]
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0) as other,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=other.pid
        ) as process,
    ):
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(10) == 128 + signal.SIGKILL
        assert other.poll() is None
        other.kill()


def test_the_leash_ends_with_its_program_and_says_how() -> None:
    words = [sys.executable, "-P", leash.__file__, sys.executable, "-c", "raise SystemExit(7)"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, process_group=0) as process:
        assert process.wait(10) == 7
