"""The `shoal` command as a whole: quick, quiet on stdout, with exit codes that scripts can rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import typer.main

from shoal.cli import main
from shoal.cli.main import app
from shoal.errors import Busy, NoCoverage, NotRunning, ShoalError
from shoal.types import Span
from tests.cli.conftest import Shoal

SHOAL = [sys.executable, "-m", "shoal.cli"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `fail` that raises what the test puts into the list."""
    errors: list[BaseException] = []

    def fail(as_json: bool = typer.Option(False, "--json")) -> None:
        raise errors[0]

    monkeypatch.setattr(app, "registered_commands", list(app.registered_commands))
    app.command()(fail)
    return errors


def test_help_names_every_command(shoal: Shoal) -> None:
    ran = shoal("--help")
    assert ran.code == 0
    words = "up serve join invite run chat status peers ping models doctor demo bench key identity version"
    for word in f"{words} config service completion".split():
        assert f"\n  {word} " in ran.out


def test_the_list_of_commands_says_what_each_commands_own_help_says_first() -> None:
    """The list is made without importing the commands; they are what it says."""
    group = typer.main.get_command(app)
    for name, lazy in main.Commands.lazy.items():
        command = group.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
        assert command.get_short_help_str(200).startswith(lazy.help.removesuffix(".")), name


def test_help_imports_no_command() -> None:
    code = "import sys; from shoal.cli.main import run; run(['--help']); print('loaded:', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.splitlines()[-1].split())
    commands = {f"shoal.cli.{lazy.module}" for lazy in main.Commands.lazy.values()} - {
        "shoal.cli.shell.completion"
    }
    assert not loaded & commands
    assert not loaded & {"numpy", "cryptography", "psutil", "rich", "importlib.metadata"}


@pytest.mark.parametrize("argv", [["--help"], ["version"], ["models", "list"]])
def test_the_heavy_libraries_wait_until_a_command_needs_them(argv: list[str], home: Path) -> None:
    code = (
        "import sys; from shoal.cli.main import run; assert run(sys.argv[1:]) == 0; "
        "print('heavy:', *{'torch', 'transformers', 'libp2p', 'trio'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1].strip() == "heavy:"


def test_version_as_text_and_as_json(shoal: Shoal) -> None:
    assert shoal("version").out.startswith("shoal 0.")
    data = shoal("version", "--json").data
    assert set(data) == {"shoal", "python", "torch", "transformers", "libp2p", "supports"}
    assert "missing" not in data.values()


def test_an_error_says_what_is_wrong_what_to_check_and_what_to_type(
    shoal: Shoal, failing: list[BaseException]
) -> None:
    failing.append(NotRunning("no peer answers", check="that a node runs", next_command="shoal up"))
    ran = shoal("fail")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == "error: no peer answers\ncheck: that a node runs\ntry:   shoal up\n"


def test_an_error_as_json_is_one_object_on_stdout(shoal: Shoal, failing: list[BaseException]) -> None:
    failing.append(NoCoverage("nobody serves 0:10", missing=[Span(0, 10)]))
    ran = shoal("fail", "--json")
    assert ran.code == 4
    assert ran.err == ""
    assert ran.data["error"] == {
        "code": "no_coverage",
        "message": "nobody serves 0:10",
        "check": "",
        "next_command": "",
        "exit_code": 4,
        "missing": ["0:10"],
    }


def test_an_error_out_of_a_nursery_is_shown_as_itself(shoal: Shoal, failing: list[BaseException]) -> None:
    failing.append(ExceptionGroup("tasks", [ExceptionGroup("more", [Busy("full", tokens_free=9)])]))
    ran = shoal("fail", "--json")
    assert ran.code == 6
    assert ran.data["error"]["tokens_free"] == 9


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), BaseExceptionGroup("tasks", [KeyboardInterrupt(), ShoalError("cut off")])],
    ids=["alone", "among others"],
)
def test_ctrl_c_ends_with_130_and_no_word(
    shoal: Shoal, failing: list[BaseException], error: BaseException
) -> None:
    failing.append(error)
    ran = shoal("fail")
    assert (ran.code, ran.out) == (130, "")
    assert "Traceback" not in ran.err


def test_a_disk_that_is_full_is_out_of_resources(shoal: Shoal, failing: list[BaseException]) -> None:
    failing.append(OSError(28, "No space left on device", "/data/models"))
    ran = shoal("fail")
    assert ran.code == 6
    assert "/data/models: No space left on device" in ran.err


def test_a_defect_is_called_one_and_the_traceback_is_kept_for_debug(
    shoal: Shoal, failing: list[BaseException]
) -> None:
    failing.append(RuntimeError("cannot be"))
    ran = shoal("fail")
    assert ran.code == 1
    assert "a defect of Shoal: RuntimeError: cannot be" in ran.err
    assert "SHOAL_LOG_LEVEL=debug" in ran.err
    assert "Traceback" not in ran.err


def test_debug_shows_the_traceback(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.cli.identity.emit", lambda *_: 1 / 0)
    ran = shoal("--log-level", "debug", "identity", "path")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "ZeroDivisionError" in ran.err


@pytest.mark.parametrize("argv", [["nonsense"], ["serve"], ["serve", "m", "--port", "x"], ["models"], []])
def test_a_command_line_that_makes_no_sense_ends_with_2(shoal: Shoal, argv: list[str]) -> None:
    ran = shoal(*argv)
    assert (ran.code, ran.out) == (2, "")
    assert "--help" in ran.err


def test_a_usage_error_is_json_too_when_that_was_asked_for(shoal: Shoal) -> None:
    ran = shoal("serve", "--json", "--nonsense")
    assert ran.code == 2
    assert ran.data["error"]["code"] == "usage"


def test_a_broken_config_file_ends_with_2_and_names_it(shoal: Shoal, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("prot = 1")
    ran = shoal("identity", "path")
    assert ran.code == 2
    assert "config.toml" in ran.err


def test_a_reader_that_leaves_early_causes_no_noise(home: Path) -> None:
    with subprocess.Popen(
        [*SHOAL, "version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_a_reader_that_leaves_ends_a_command_that_runs_on_without_a_word(home: Path) -> None:
    code = (
        "import sys, trio, shoal.cli.identity as i, shoal.cli.main as m\n"
        "async def talk():\n"
        "    async with trio.open_nursery() as nursery: nursery.start_soon(say)\n"
        "async def say():\n"
        "    while True: print('fish', flush=True); await trio.sleep(0.01)\n"
        "i.emit = lambda *_: trio.run(talk)\n"
        "sys.argv = ['shoal', 'identity', 'path']; m.main()"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "fish\n"
        process.stdout.close()
        assert process.wait(10) == 1
        assert process.stderr.read() == ""


def test_sigint_ends_a_process_with_130(home: Path) -> None:
    code = (
        "import sys, time, shoal.cli.identity as i, shoal.cli.main as m\n"
        "i.emit = lambda *_: (print('go', flush=True), time.sleep(30))\n"
        "sys.argv = ['shoal', 'identity', 'path']; m.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(name: str) -> None:
    code = (
        f"import signal; signal.signal(signal.{name}, signal.SIG_IGN)\n"
        "from shoal.local.ending import how_to_end, stop_signals\n"
        "print(*(number.name for number in stop_signals())); print(how_to_end())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["SIGTERM", *({"SIGINT", "SIGHUP"} - {name}), "SIGTERM"]


def test_a_terminal_that_lacks_a_letter_gets_a_question_mark(home: Path) -> None:
    run = subprocess.run(
        [*SHOAL, "identity", "path", "--json"],
        env=os.environ | {"SHOAL_HOME": "/tmp/ünï", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["path"] == "/tmp/?n?/identity.key"


def test_main_ends_the_process_with_the_code(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["shoal", "nonsense"])
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 2
