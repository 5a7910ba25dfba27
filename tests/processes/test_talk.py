"""People at a terminal, and scripts at a pipe: `shoal chat` and `shoal status --watch` with a real swarm."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

import pytest

from shoal.swarm import membership

from .conftest import processes

pytestmark = pytest.mark.swarm
CTRL_C = b"\x03"
PROMPT = "\x1b[?2004h"
"""What a terminal is told when a line is to be typed: mark what is pasted."""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory, checkpoint):
    """Three nodes on the kernels: neither they nor the commands here import torch."""
    home = tmp_path_factory.mktemp("talk")
    with processes(home, str(checkpoint), 6, format="int8") as booted:
        membership.save(home / "swarms", booted.local.membership)
        yield booted


def command(swarm, *argv):
    swarm_name = swarm.local.membership.name
    environ = {**os.environ, "SHOAL_HOME": str(swarm.home), "SHOAL_HOST": "127.0.0.1", "SHOAL_MDNS": "0"}
    return [sys.executable, "-m", "shoal.cli", *argv, "--swarm", swarm_name], environ | {"TERM": "xterm"}


class Terminal:
    """A command at a terminal of its own, as a person has it before them."""

    def __init__(self, argv: Sequence[str], environ: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ,
            start_new_session=True,
            # The terminal makes a signal of Ctrl-C for those whose terminal it is.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  no threads here
        )
        os.close(theirs)
        self._seen = b""

    def waits_for(self, text: str, within_s: float = 30.0) -> str:
        """What was written up to ``text``; it is not looked at again."""
        deadline = time.monotonic() + within_s
        while text.encode() not in self._seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come, but {self._seen!r}"
            if select.select([self._ours], [], [], left)[0]:
                piece = os.read(self._ours, 4096)
                if b"\x1b[6n" in piece:
                    os.write(self._ours, b"\x1b[1;1R")  # where the cursor is, as terminals tell
                self._seen += piece
        seen, _, self._seen = self._seen.partition(text.encode())
        return seen.decode(errors="replace")

    def types(self, keys: str | bytes) -> None:
        os.write(self._ours, keys if isinstance(keys, bytes) else keys.encode())


def test_a_person_asks_stops_an_answer_asks_on_and_ends(swarm):
    terminal = Terminal(*command(swarm, "chat", swarm.model, "--max-tokens", "200", "--temperature", "0"))
    try:
        terminal.waits_for("/help lists the commands")
        terminal.waits_for(PROMPT)
        terminal.types("why?\r")
        terminal.waits_for(" tok/s by ")
        for _ in range(20):
            terminal.waits_for(PROMPT)
            terminal.types("/new\r")
            terminal.waits_for(PROMPT)
            terminal.types("how?\r")
            terminal.waits_for("asking")
            terminal.types(CTRL_C)
            if "stopped" in terminal.waits_for(" tok/s"):
                break
        else:
            pytest.fail("no answer was stopped in twenty tries")
        terminal.waits_for(PROMPT)
        terminal.types("/route\r")
        terminal.waits_for("compute")
        terminal.waits_for(PROMPT)
        terminal.types(CTRL_C)
        assert terminal.process.wait(20) == 130
    finally:
        terminal.process.kill()
        terminal.process.wait()


def test_a_script_gets_the_answers_alone(swarm):
    argv, environ = command(swarm, "chat", swarm.model, "--max-tokens", "8", "--temperature", "0")
    ran = subprocess.run(
        argv, env=environ, input="why?\n/new\nwhy?\n", capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout[: len(ran.stdout) // 2], ran.stdout[len(ran.stdout) // 2 :]
    assert first == second != ""
    assert "> " not in ran.stderr
