"""Another transformers than those that were tested is told at once, by one error that says what to type."""

from __future__ import annotations

import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import transformers

from shoal.cli import main
from shoal.cli.doctor import checks
from shoal.config import Settings
from shoal.errors import IncompatibleLibrary
from shoal.models.build.skeleton import read_model_config
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.seam.versions import SUPPORTED, check_version, installed_version
from shoal.testing.checkpoints import write_checkpoint

ROOT = Path(__file__).parents[3]


def test_the_package_asks_for_the_versions_that_the_code_supports() -> None:
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"transformers{SUPPORTED}" in needs


def test_the_version_is_that_of_what_is_imported() -> None:
    assert installed_version() == transformers.__version__ == metadata.version("transformers")
    assert check_version() == transformers.__version__


@pytest.mark.parametrize("version", ["5.20.0", "5.22.2", "5.24.0", "5.24.9"])
def test_a_version_in_the_range_passes(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", version)
    assert check_version() == version


@pytest.mark.parametrize("version", ["4.57.6", "5.19.0", "5.25.0.dev0", "5.99.0", "6.20.0", "unknown"])
def test_any_other_is_named_with_what_to_type(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", version)
    with pytest.raises(IncompatibleLibrary) as caught:
        check_version()
    assert version in caught.value.message and SUPPORTED in caught.value.message
    assert caught.value.next_command == f"pip install 'transformers{SUPPORTED}'"


def test_none_at_all_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(IncompatibleLibrary, match="not installed"):
        check_version()


def test_a_model_is_not_looked_at_with_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model"))
    monkeypatch.setattr("transformers.__version__", "5.99.0")
    with pytest.raises(IncompatibleLibrary, match=r"5\.99\.0"):
        read_model_config(checkpoint)


def test_a_command_that_needs_a_model_ends_with_that_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "model", "gpt2")
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("transformers.__version__", "5.99.0")
    assert main.run(["models", "pull", str(folder), "--json"]) == 1
    said = capsys.readouterr()
    error = json.loads(said.out or said.err)["error"]
    assert error["code"] == "incompatible_library"
    assert "5.99.0" in error["message"] and "cannot be split" not in error["message"]


def test_the_doctor_says_it_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "5.99.0")
    found = checks.run("packages", Settings())
    assert found.verdict == "fail" and "5.99.0" in found.detail
    assert found.fix == f"pip install 'transformers{SUPPORTED}'"
