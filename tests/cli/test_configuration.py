"""`shoal config`: a file with every option explained, that cannot fall behind the options."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from shoal import config
from shoal.cli.configuration import documented, text, to_toml
from shoal.config import OPTIONS, Settings
from tests.cli.conftest import Shoal


def test_every_option_is_explained() -> None:
    assert [option.name for option in documented()] == list(OPTIONS)
    for option in documented():
        assert option.about.endswith("."), option.name


@pytest.mark.parametrize("name", ["host", "memory", "wire", "kv", "mdns", "bootstrap"])
def test_a_flag_s_help_is_the_first_sentence_of_what_the_option_means(shoal: Shoal, name: str) -> None:
    help = " ".join(shoal("serve", "--help").out.split())
    assert f"{config.ABOUT[name].partition('. ')[0].removesuffix('.')}." in help


def test_the_file_as_it_is_written_changes_nothing() -> None:
    assert tomllib.loads(text()) == {}


def test_with_every_line_taken_in_it_holds_the_defaults(tmp_path: Path) -> None:
    values = re.sub(r"^# (\w+ = )", r"\1", text(), flags=re.MULTILINE)
    (tmp_path / "config.toml").write_text(values)
    assert set(tomllib.loads(values)) == set(OPTIONS)
    found = config.load(environ={"SHOAL_HOME": str(tmp_path)})
    assert [getattr(found, name) for name in OPTIONS] == [getattr(Settings(), name) for name in OPTIONS]


def test_init_writes_it_once(shoal: Shoal, home: Path) -> None:
    assert shoal("config", "init").out == f"wrote {home / 'config.toml'}\n"
    assert (home / "config.toml").read_text() == text()
    (home / "config.toml").write_text("port = 4001\n")
    ran = shoal("config", "init")
    assert (ran.code, (home / "config.toml").read_text()) == (2, "port = 4001\n")


def test_path_answers_even_when_the_file_is_broken(shoal: Shoal, home: Path) -> None:
    assert shoal("config", "path", "--json").data == {"path": str(home / "config.toml"), "exists": False}
    home.mkdir()
    (home / "config.toml").write_text("prot = 1")
    assert shoal("config", "path").out == f"{home / 'config.toml'}\n"


def test_show_has_the_values_that_hold_here(
    shoal: Shoal, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "config.toml").write_text("port = 4001\n")
    monkeypatch.setenv("SHOAL_SWARM", "office")
    values = shoal("config", "show", "--json").data["options"]
    assert (values["port"], values["swarm"], values["mdns"]) == (4001, "office", True)
    lines = shoal("config", "show").out.splitlines()
    assert ["port", "4001"] in [line.split()[:2] for line in lines]


@pytest.mark.parametrize("value", ["", 'a "b"\n', 0, 1.5, True, ("/ip4/1.2.3.4", "x"), ()])
def test_values_are_toml(value: object) -> None:
    (found,) = tomllib.loads(f"x = {to_toml(value)}").values()
    assert found == (list(value) if isinstance(value, tuple) else value)


def test_a_database_is_shown_without_its_password(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DATABASE", "postgresql://ada:hunter2@db.example.org/shoal")
    shown = "postgresql://ada:***@db.example.org/shoal"
    assert shoal("config", "show", "--json").data["options"]["database"] == shown
    assert "hunter2" not in shoal("config", "show").out
