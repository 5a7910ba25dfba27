"""Other programs: how they are started, asked and ended, and what is said when they are not there."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from shoal.bench.peers.language_pipes import model_layer_bytes, node_config
from shoal.bench.peers.measure import busy
from shoal.bench.peers.programs import ask, ask_together, free_port, output_of, running_program
from shoal.errors import ShoalError
from shoal.models.store.local_model import LocalModel
from shoal.types import Span
from tests.bench.conftest import SMALL

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/busy":
            return self.send_error(503, "busy")
        self.send_response(200)
        self.end_headers()
        for line in open(sys.argv[2] + self.path):
            self.wfile.write(b"data: " + line.encode() + b"\\n")
    def log_message(self, *of):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def chunk(**delta: str) -> str:
    return json.dumps({"choices": [{"delta": delta}]})


async def test_streamed_answers_are_counted_by_their_tokens(tmp_path: Path) -> None:
    chat = [
        chunk(role="assistant", content=""),
        chunk(content=""),
        chunk(content="a"),
        chunk(content="b"),
        chunk(),
    ]
    llama = [json.dumps({"content": text, "stop": not text}) for text in ("x", "y", "z", "")]
    (tmp_path / "chat").write_text("\n".join([*chat, "[DONE]"]))
    (tmp_path / "llama").write_text("\n".join(llama))
    (tmp_path / "short").write_text(chat[2])
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port), str(tmp_path)]
    async with running_program(command, {}, port, tmp_path / "server.log") as process:
        assert (await ask(port, "/chat", {})).tokens == 2
        answer = await ask(port, "/llama", {})
        assert answer.tokens == 3 and 0 < answer.first_s <= answer.total_s
        assert await ask_together(port, "/llama", [{}, {}]) > 0
        with pytest.raises(ShoalError, match="503"):
            await ask(port, "/busy", {})
        with pytest.raises(ShoalError, match="1 tokens"):
            await ask(port, "/short", {})
    assert process.returncode is not None


async def test_a_program_that_ends_early_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with pytest.raises(ShoalError, match="no such model"):
        async with running_program(command, {}, free_port(), tmp_path / "server.log"):
            pass
    with pytest.raises(ShoalError, match="no such model"):
        await output_of(command)


def test_a_machine_that_others_use_is_told_of() -> None:
    assert busy(0.4, 2) == []
    assert "load 3.0 on 2 cores" in busy(3.0, 2)[0]


def test_a_node_of_language_pipes_is_given_the_room_of_its_layers(model: LocalModel) -> None:
    shape = SMALL
    weights = (
        2 * shape.hidden * (shape.hidden + shape.hidden // 2)
        + 3 * shape.hidden * shape.ffn
        + 2 * shape.hidden
    )
    assert model_layer_bytes(model) == 2 * weights
    first = tomllib.loads(node_config(model, Span(0, 1), 0, [7001, 7002], 7000))
    second = tomllib.loads(node_config(model, Span(1, 2), 1, [7001, 7002], 7000))
    assert first["job_port"] == 7000 and first["end_models"] == ["shoal/measured"]
    assert second["bootstrap_nodes"] == [{"address": "127.0.0.1", "port": 7001}]
    for node in (first, second):
        (layers,) = node["layer_models"]
        assert int(layers["memory"] * 2**30 / model_layer_bytes(model)) == 1
