"""`shoal up` for real: a node and its gateway as processes, asked as a program would ask."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import httpx
import pytest

from shoal.testing.checkpoints import write_checkpoint
from tests.clients.conftest import wait_ready

pytestmark = pytest.mark.swarm


@pytest.fixture
def up(tmp_path):
    """A node that serves a whole small model, with its gateway at a free port."""
    model = write_checkpoint(tmp_path / "tiny", "llama")
    env = os.environ | {"SHOAL_HOME": str(tmp_path / "home"), "SHOAL_HOST": "127.0.0.1", "SHOAL_MDNS": "0"}
    command = [sys.executable, "-m", "shoal.cli", "up", "--model", str(model), "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--gateway-port", "0", "--json"], env=env, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()


def event(process, name):
    """The next event of that name."""
    for line in process.stdout:
        said = json.loads(line)
        if said["event"] == name:
            return said
    raise AssertionError(f"it ended without {name}")


def test_one_command_serves_an_answer_over_http(up):
    url = event(up, "gateway")["url"]
    with httpx.Client(base_url=url, timeout=60) as http:
        wait_ready(url)
        (model,) = http.get("/v1/models").json()["data"]
        asked = {"model": model["id"], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        answer = http.post("/v1/chat/completions", json=asked).json()
        assert answer["usage"]["completion_tokens"] >= 1
        assert [stage["carrier"] for stage in answer["shoal"]["route"]] == ["direct"]
        swarm = http.get("/api/swarm").json()
        assert swarm["models"][0]["missing"] == []
        assert http.get("/api/invite").json()["code"].startswith("shoal1-")
        with http.stream("GET", "/api/events") as events:
            first = next(events.iter_text())
            assert first.startswith("event: swarm\ndata: ")
