"""Hub ids: a small hub on loopback shows which way a fetch takes, and what it does and does not ask for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from shoal.models.store.config_only import glance
from shoal.models.store.sources import hub_client
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint
from tests.web_server import WebServer

from .ggufs import write_family

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import sys, json, pathlib
from shoal.errors import ShoalError
from shoal.models.store.store import ModelStore
told, totals = set(), set()
def tell(label, done, total):
    told.add(done)
    totals.add(total)
try:
    m = ModelStore(pathlib.Path(sys.argv[1])).pull(sys.argv[2], tell)
    found = {"name": m.name, "path": str(m.path), "source": m.source, "told": len(told)}
    found["totals"] = sorted(totals)
    print(json.dumps(found | {"files": sorted(p.name for p in m.path.iterdir())}))
except ShoalError as error:
    said = {"error": error.code, "message": error.message, "check": error.check}
    print(json.dumps(said | {"next": error.next_command}))
"""

GLANCE = """
import sys, json, pathlib
from shoal.models.store.sources.hub_client import fetch_config
print(json.dumps({"folder": str(fetch_config(sys.argv[2], []))}))
"""

LISTED = """
import sys, json, time
time.sleep = lambda seconds: None  # the client tries again, ever later
from shoal.errors import ShoalError
from shoal.models.store.sources.hub_client import gguf_models
try:
    print(json.dumps(gguf_models(sys.argv[2])))
except ShoalError as error:
    print(json.dumps({"error": error.code, "message": error.message}))
"""


class Hub(WebServer):
    """Serves ``org/tiny`` out of a folder, ``org/ggufs`` out of one in it, and ``org/gated`` to nobody."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        self.server.asked.append(self.path)
        self.server.tokens.add(self.headers.get("Authorization"))
        path = self.path.split("?")[0]
        folder = self.server.folder / "ggufs" if "org/ggufs" in path else self.server.folder
        path = path.replace("org/ggufs", "org/tiny")
        paths = [*folder.glob("*"), *folder.glob("[!g]*/*")]
        names = sorted(p.relative_to(folder).as_posix() for p in paths if p.is_file())
        if path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": n, "size": (folder / n).stat().st_size} for n in names]
            tree = [
                {"type": "file", "path": s["rfilename"], "size": s["size"], "oid": "0" * 40} for s in siblings
            ]
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            info |= {"downloads": 0, "likes": 0}
            self._send(200, json.dumps(tree if "/tree/" in path else info).encode(), body)
        elif (wanted := re.fullmatch(rf"/org/tiny/resolve/(?:{COMMIT}|main)/(.+)", path)) and wanted[
            1
        ] in names:
            data = (folder / wanted[1]).read_bytes()
            etag = hashlib.sha1(data).hexdigest()
            self._send(200, data, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
        elif "org/gated" in path:
            self._send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        else:
            self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub has. It is nobody's to change."""
    scratch = tmp_path_factory.mktemp("hub")
    folder = write_checkpoint(scratch / "published", shard="300KB")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "consolidated.safetensors").write_bytes(b"the same again")
    (folder / "modules.json").write_text("[]")
    for inner in ("1_Pooling", "onnx"):
        (folder / inner).mkdir()
        (folder / inner / "config.json").write_text("{}")
    (folder / "ggufs").mkdir()
    write_family(folder / "ggufs" / "big.gguf", scratch / "big", "llama", split=20)
    write_family(folder / "ggufs" / "small.gguf", scratch / "small", "qwen3")
    (folder / "ggufs" / "mmproj.gguf").write_bytes(b"GGUF")
    return folder


@pytest.fixture
def hub(published: Path, tmp_path: Path) -> Generator[Hub]:
    with Hub(shutil.copytree(published, tmp_path / "published")) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()


def pull(tmp_path: Path, name: str, *, script: str = SCRIPT, **environment: str) -> dict[str, object]:
    # huggingface_hub reads its environment when it is imported: each pull is a process of its own.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environ |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"} | environment
    command = [sys.executable, "-c", script, str(tmp_path / "store"), name]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.models
def test_a_hub_model_is_fetched_kept_in_hf_home_and_found_offline(hub: Hub, tmp_path: Path) -> None:
    found = pull(tmp_path, "org/tiny", HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
    assert (found["name"], found["source"]) == ("org/tiny", "hub:org/tiny")
    assert str(found["path"]).startswith(str(tmp_path / "hf"))
    assert int(str(found["told"])) > 1
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= set(found["files"])  # type: ignore[call-overload]
    assert "Bearer hf_secret" in hub.tokens
    assert (Path(str(found["path"])) / "1_Pooling/config.json").is_file()
    for never in ("pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors", "onnx/config.json"):
        assert not any(path.endswith(never) for path in hub.asked)
    asked = len(hub.asked)
    again = pull(tmp_path, "org/tiny", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert again["path"] == found["path"]
    assert len(hub.asked) == asked


@pytest.mark.models
def test_a_gguf_file_of_the_hub_comes_with_its_siblings(hub: Hub, tmp_path: Path) -> None:
    files = sorted((hub.folder / "ggufs").glob("big-*.gguf"))
    found = pull(tmp_path, f"org/ggufs/{files[1].name}", HF_ENDPOINT=hub.url)
    assert (found["name"], found["source"]) == ("big", f"hub:org/ggufs/{files[0].name}")
    assert "model-00002-of-00003.gguf" in found["files"]  # type: ignore[operator]
    assert sum(file.stat().st_size for file in files) in found["totals"]  # type: ignore[operator]
    fetched = {path.rsplit("/", 1)[1] for path in hub.asked if "/resolve/" in path}
    assert fetched == {file.name for file in files}
    for name in ("big", f"org/ggufs/{files[2].name}"):
        assert pull(tmp_path, name, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")["path"] == found["path"]


@pytest.mark.models
def test_a_repository_of_gguf_files_names_its_models(hub: Hub, tmp_path: Path) -> None:
    several = pull(tmp_path, "org/ggufs", HF_ENDPOINT=hub.url)
    assert "2 models as GGUF files: big-00001-of-00003.gguf, small.gguf" in str(several["message"])
    assert several["next"] == "shoal models pull org/ggufs/big-00001-of-00003.gguf"
    for file in (hub.folder / "ggufs").glob("big-*.gguf"):
        file.unlink()
    assert pull(tmp_path / "again", "org/ggufs", HF_ENDPOINT=hub.url)["name"] == "small"
    missing = pull(tmp_path, "org/ggufs/other.gguf", HF_ENDPOINT=hub.url)
    assert (missing["error"], "no file other.gguf" in str(missing["message"])) == ("unknown_model", True)


@pytest.mark.models
def test_a_disk_that_fills_up_while_the_hub_sends_is_no_unknown_model(hub: Hub, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
    full = pull(tmp_path, "org/tiny", script=limit + SCRIPT, HF_ENDPOINT=hub.url)
    assert full["error"] == "out_of_resources"
    assert re.search(rf"the disk of {tmp_path}/hf\S* is full: org/tiny needs \d+ MB", str(full["message"]))
    assert "HF_HOME" in str(full["check"])
    assert "error" not in pull(tmp_path, "org/tiny", HF_ENDPOINT=hub.url)


@pytest.mark.models
def test_a_glance_fetches_the_config_alone(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fetches it is a process of its own, as above; what looks at it is here, where transformers is."""

    def fetched(name: str, close: object) -> Path:
        return Path(str(pull(tmp_path, name, script=GLANCE, HF_ENDPOINT=hub.url)["folder"]))

    monkeypatch.setattr(hub_client, "fetch_config", fetched)
    seen = glance(ModelStore(tmp_path / "store"), "org/tiny")
    assert (seen.name, seen.stored, seen.context) == ("org/tiny", "F32", 256)
    assert {path.rsplit("/", 1)[1] for path in hub.asked if "/resolve/" in path} == {"config.json"}
    assert not (tmp_path / "store").exists()


@pytest.mark.models
def test_what_the_hub_does_not_have_or_give(hub: Hub, tmp_path: Path) -> None:
    unknown = pull(tmp_path, "org/unknown", HF_ENDPOINT=hub.url)
    assert (unknown["error"], "knows no model" in str(unknown["message"])) == ("unknown_model", True)
    gated = pull(tmp_path, "org/gated", HF_ENDPOINT=hub.url)
    assert (gated["error"], "HF_TOKEN" in str(gated["check"])) == ("unknown_model", True)


@pytest.mark.models
def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    away = pull(tmp_path, "HuggingFaceTB/SmolLM2-135M", HF_ENDPOINT="http://127.0.0.1:9")
    assert away["error"] == "unknown_model"
    assert "cannot be reached" in str(away["message"])
    assert "SmolLM2-135M-Instruct" in str(away["message"])
    offline = pull(tmp_path, "org/tiny", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in str(offline["check"])


@pytest.mark.models
def test_a_hub_that_breaks_off_is_named_whatever_its_client(tmp_path: Path) -> None:
    """What the hub's own functions let through is an error of the HTTP client, httpx or httpx2."""
    away = pull(tmp_path, "org/ggufs", script=LISTED, HF_ENDPOINT="http://127.0.0.1:9")
    assert (away["error"], "cannot be reached" in str(away["message"])) == ("unknown_model", True)
