"""Nodes that die, leave and end: what their clients and whoever watches learn of it, and how soon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import psutil
import pytest

from shoal.errors import NoCoverage
from shoal.swarm import membership

from .conftest import processes
from .test_talk import command

pytestmark = pytest.mark.swarm
PROMPT = list(range(5, 25))


def peers_of(connected, count, within_s):
    """Wait until so many peers serve something."""
    until = time.monotonic() + within_s
    while len(connected.announcements()) != count:
        assert time.monotonic() < until, connected.announcements()
        time.sleep(0.1)


def watching(argv, environ):
    """A command that Ctrl-C alone ends."""
    return subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_a_killed_node_a_node_that_leaves_and_the_end_of_all(tmp_path, checkpoint):
    with processes(tmp_path, str(checkpoint), 6, format="int8") as swarm:
        membership.save(tmp_path / "swarms", swarm.local.membership)
        pids = [node["pid"] for node in swarm.local.nodes]
        argv, environ = command(swarm, "status", "--watch", "--json")
        with (
            watching(argv, environ) as watch,
            swarm.connect() as connected,
        ):
            views = (json.loads(line) for line in watch.stdout)
            assert next(view for view in views if len(view["peers"]) == 3)["models"][0]["complete"]
            peers_of(connected, 3, within_s=30)
            with (
                pytest.raises(NoCoverage, match="blocks 2:4"),
                connected.session(swarm.model, tokens=64) as session,
            ):
                session.step(PROMPT)
                os.kill(pids[1], signal.SIGKILL)
                began = time.monotonic()
                try:
                    session.step([1])
                finally:
                    assert time.monotonic() - began < 20
            gap = next(view for view in views if not view["models"][0]["complete"])
            assert gap["models"][0]["missing"] == ["2:4"]
            watch.send_signal(signal.SIGINT)
            assert watch.wait(20) == 130
            os.kill(pids[2], signal.SIGTERM)  # it says goodbye
            peers_of(connected, 1, within_s=connected.swarm.settings.expiry_s / 3)
            with pytest.raises(NoCoverage, match="2:6"), connected.session(swarm.model):
                pass
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)
