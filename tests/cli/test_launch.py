"""`shoal launch`: fake programs on PATH, a fake gateway, and a home that is nobody's."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from shoal.cli.launch.config_file import write
from shoal.errors import OutOfResources, UsageError
from shoal.gateway.page.apps import APPS, GatewayAddress
from tests.cli.conftest import Shoal
from tests.web_server import WebServer

PROGRAM = """#!/bin/sh
env >"$0.env"
printf '%s\\n' "$@" >"$0.args"
exit 7
"""
MODELS = ["m-one", "m-two"]


class Gateway(BaseHTTPRequestHandler):
    key: str | None = None
    body = json.dumps({"data": [{"id": name} for name in MODELS]}).encode()

    def do_GET(self) -> None:
        known = self.key is None or self.headers.get("Authorization") == f"Bearer {self.key}"
        self.send_response(200 if known and self.path == "/v1/models" else 401)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Gateway, "key", None)
    server = WebServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class Programs:
    """The only programs that are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str) -> None:
        path = self.folder / name
        path.write_text(PROGRAM)
        path.chmod(0o755)

    def environ(self, name: str) -> dict[str, str]:
        lines = (self.folder / f"{name}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def arguments(self, name: str) -> list[str]:
        return (self.folder / f"{name}.args").read_text().splitlines()

    def started(self, name: str) -> bool:
        return (self.folder / f"{name}.args").exists()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "env").symlink_to("/usr/bin/env")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return Programs(folder)


@pytest.mark.parametrize(
    ("name", "expected", "arguments"),
    [
        (
            "claude",
            {"ANTHROPIC_BASE_URL": "URL", "ANTHROPIC_MODEL": "m-one", "ANTHROPIC_API_KEY": ""},
            ["--resume"],
        ),
        (
            "goose",
            {"OPENAI_HOST": "URL", "GOOSE_MODEL": "m-one", "GOOSE_PROVIDER": "openai"},
            ["session", "--resume"],
        ),
        ("aider", {"OPENAI_API_BASE": "URL/v1"}, ["--model", "openai/m-one", "--resume"]),
        ("open-webui", {"OPENAI_API_BASE_URL": "URL/v1"}, ["serve", "--resume"]),
        ("opencode", {}, ["--resume"]),
    ],
)
def test_a_program_is_started_with_what_it_needs(
    shoal: Shoal, gateway: str, programs: Programs, name: str, expected: dict[str, str], arguments: list[str]
) -> None:
    programs.install(name)
    ran = shoal("launch", name, "--url", gateway, "--", "--resume")
    assert ran.code == 7, ran.err
    found = programs.environ(name)
    assert {key: found[key] for key in expected} == {
        key: value.replace("URL", gateway) for key, value in expected.items()
    }
    assert programs.arguments(name) == arguments
    assert "with m-one" in ran.err
    if name == "opencode":
        told = json.loads(found["OPENCODE_CONFIG_CONTENT"])
        assert told["model"] == "shoal/m-one"
        assert told["provider"]["shoal"]["options"] == {"baseURL": f"{gateway}/v1", "apiKey": "none"}


def test_a_model_can_be_named_and_must_be_there(shoal: Shoal, gateway: str, programs: Programs) -> None:
    programs.install("aider")
    assert shoal("launch", "aider", "--url", gateway, "--model", "m-two").code == 7
    assert programs.arguments("aider") == ["--model", "openai/m-two"]
    ran = shoal("launch", "aider", "--url", gateway, "--model", "m-three")
    assert ran.code == UsageError.exit_code
    assert "choose one of: m-one, m-two" in ran.err


def test_a_key_is_passed_on_and_never_shown(
    shoal: Shoal, gateway: str, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gateway, "key", "sk-shoal-secret")
    for name in ("claude", "opencode"):
        programs.install(name)
        ran = shoal("launch", name, "--url", gateway)
        assert (ran.code, "shoal key create NAME" in ran.err) == (UsageError.exit_code, True)
        ran = shoal("launch", name, "--url", gateway, "--key", "sk-shoal-secret")
        assert ran.code == 7
        assert "sk-shoal-secret" not in ran.err + ran.out
        assert "YOUR_SHOAL_KEY" in ran.err
    assert programs.environ("claude")["ANTHROPIC_AUTH_TOKEN"] == "sk-shoal-secret"
    assert "sk-shoal-secret" in programs.environ("opencode")["OPENCODE_CONFIG_CONTENT"]


def test_what_is_installed_is_listed(shoal: Shoal, programs: Programs) -> None:
    programs.install("aider")
    found = {app["name"]: app["installed"] for app in shoal("launch", "--list", "--json").data["apps"]}
    assert list(found) == [app.name for app in APPS]
    assert {name for name, path in found.items() if path} == {"aider"}
    assert "npm install -g opencode-ai" in shoal("launch", "--list").out


def test_print_shows_what_would_be_done_and_does_nothing(
    shoal: Shoal, programs: Programs, tmp_path: Path
) -> None:
    for app in APPS:
        programs.install(app.program)
        ran = shoal(
            "launch", app.name, "--print", "--url", "http://example.org:1", "--model", "m", "--key", "sk"
        )
        assert ran.code == 0
        assert "http://example.org:1" in ran.out
        assert "YOUR_SHOAL_KEY" in ran.out
        assert not programs.started(app.program)
    assert not (tmp_path / "user").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["launch"], "claude, opencode, goose, aider, open-webui, continue"),
        (["launch", "emacs"], "'emacs' is not among the programs"),
        (["launch", "aider"], "aider is not installed"),
        (["launch", "aider", "--url", "example.org"], "is no address"),
        (["launch", "aider", "--url", "http://["], "is no address"),
        (["launch", "aider", "--url", "http://example.org:99999"], "is no address"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    shoal: Shoal, programs: Programs, argv: list[str], said: str
) -> None:
    ran = shoal(*argv)
    assert ran.code == UsageError.exit_code
    assert said.lower() in ran.err.lower()


def test_no_gateway_is_said_with_the_command_that_starts_one(shoal: Shoal, programs: Programs) -> None:
    programs.install("aider")
    ran = shoal("launch", "aider", "--url", "http://127.0.0.1:9")
    assert "no gateway answers" in ran.err
    assert "shoal up" in ran.err
    assert not programs.started("aider")


def test_what_answers_there_may_be_something_else(
    shoal: Shoal, gateway: str, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.install("aider")
    monkeypatch.setattr(Gateway, "body", b'{"hello": 1}')
    assert "no gateway of Shoal" in shoal("launch", "aider", "--url", gateway).err
    monkeypatch.setattr(Gateway, "body", b'{"data": []}')
    assert "no model now" in shoal("launch", "aider", "--url", gateway).err


def test_a_file_is_written_after_asking_and_never_over_another(
    shoal: Shoal, gateway: str, programs: Programs, tmp_path: Path
) -> None:
    path = tmp_path / "user/.continue/config.yaml"
    ran = shoal("launch", "continue", "--url", gateway)
    assert (ran.code, path.exists()) == (UsageError.exit_code, False)
    assert "--yes" in ran.err
    ran = shoal("launch", "continue", "--url", gateway, "--yes")
    assert ran.code == 0
    assert f"wrote {path}" in ran.err
    text = path.read_text()
    assert f'apiBase: "{gateway}/v1"' in text
    assert path.stat().st_mode & 0o777 == 0o600
    assert "says so already" in shoal("launch", "continue", "--url", gateway).err
    path.write_text("mine")
    for refused in (("--yes",), ()):
        ran = shoal("launch", "continue", "--url", gateway, *refused)
        assert (ran.code, path.read_text()) == (UsageError.exit_code, "mine")
        assert "--replace" in ran.err
    programs.install("cn")
    assert shoal("launch", "continue", "--url", gateway, "--replace").code == 7
    assert (path.read_text(), path.with_name("config.yaml.old1").read_text()) == (text, "mine")


def test_a_file_that_cannot_be_written_leaves_the_old_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("mine")

    def full(self: Path, text: str, encoding: str) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OutOfResources, match="no space left; the old file is there again"):
            write(path, "new")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("config.yaml", "mine")]


@pytest.mark.parametrize(("said", "written"), [("y\n", True), ("n\n", False)])
def test_somebody_at_a_terminal_is_asked(
    shoal: Shoal,
    gateway: str,
    programs: Programs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    written: bool,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(said))
    ran = shoal("launch", "continue", "--url", gateway, "--key", "sk-shoal-secret")
    assert (tmp_path / "user/.continue/config.yaml").exists() == written
    assert ("YOUR_SHOAL_KEY" in ran.err, "sk-shoal-secret" in ran.err + ran.out) == (True, False)
    assert (ran.code == 0) == written
    assert ("nothing was written" in ran.err) == (not written)


def test_a_name_from_a_peer_does_not_become_a_command(tmp_path: Path) -> None:
    hostile = "m'; touch x; echo '\x1b[2J\"\n- name: y"
    place = GatewayAddress("http://h", hostile)
    for app in APPS:
        lines = app.lines(place)
        assert "\x1b" not in lines
        if app.setup(place).config is None:
            shown = lines.rsplit("\n", 1)[0]
            assert subprocess.run(["sh", "-c", shown], cwd=tmp_path, check=False).returncode == 0
        else:
            assert "\n- name: y" not in lines
    assert list(tmp_path.iterdir()) == []
