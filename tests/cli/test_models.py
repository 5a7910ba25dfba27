"""`shoal models`: what is here, what can be had, where it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from shoal.cli.models import models_table
from shoal.models.adapters.kept import KeptAdapters
from shoal.models.adapters.read import read_adapter
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.testing.adapters import write_adapter
from shoal.types import Digest, ModelShape
from tests.cli.conftest import Shoal

DIGEST = Digest("sha256:" + "0" * 64)
SMOLL = "SmolLM2-135M-Instruct"


@pytest.fixture
def fish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalModel:
    """A model that the store says is here."""
    shape = ModelShape("fish", DIGEST, 30, 64, 2048, 100)
    model = LocalModel("fish", tmp_path / "fish", DIGEST, shape, 4000, "F32", "folder:/f")
    monkeypatch.setattr(ModelStore, "list", lambda _: [model])
    monkeypatch.setattr(ModelStore, "show", lambda *_: model)
    monkeypatch.setattr(ModelStore, "pull", lambda _, name, report: report("half", 1, 2) or model)
    return model


def test_on_a_new_machine_the_catalogue_is_listed(shoal: Shoal) -> None:
    assert f"shoal models pull {SMOLL}" in shoal("models", "list").out
    (model,) = shoal("models", "list", "--json").data["models"]
    assert (model["name"], model["here"]) == (SMOLL, False)


def test_what_is_here_comes_first(shoal: Shoal, fish: LocalModel) -> None:
    models = shoal("models", "list", "--json").data["models"]
    assert [(model["name"], model["here"]) for model in models] == [("fish", True), (SMOLL, False)]
    assert str(fish.path) in shoal("models", "list").out


def test_show_says_where_it_is_and_what_it_is(shoal: Shoal, fish: LocalModel) -> None:
    data = shoal("models", "show", "fish", "--json").data
    assert (data["path"], data["digest"]) == (str(fish.path), DIGEST)
    assert (data["blocks"], data["context"], data["size"]) == (30, 2048, 4000)
    assert f"digest: {DIGEST}" in shoal("models", "show", "fish").out


@pytest.mark.parametrize(("built", "format"), [(True, "int8"), (False, "fp32")])
def test_show_says_which_format_this_machine_would_choose_and_why(
    shoal: Shoal, fish: LocalModel, monkeypatch: pytest.MonkeyPatch, built: bool, format: str
) -> None:
    monkeypatch.setattr("shoal.cli.models.kernels_built", lambda: built)
    data = shoal("models", "show", "fish", "--json").data
    assert data["format"] == format
    assert "kernels are" in data["format_why"]
    assert f"format: {format}" in shoal("models", "show", "fish").out


def test_pull_says_how_far_it_is_on_stderr(shoal: Shoal, fish: LocalModel) -> None:
    ran = shoal("models", "pull", "fish", "--json")
    assert ran.data["name"] == "fish"
    assert "half" in ran.err


@pytest.mark.parametrize("command", ["show", "rm", "pull"])
def test_an_unknown_model_names_the_close_ones(shoal: Shoal, command: str) -> None:
    ran = shoal("models", command, "SmolLM2-135M-Instrukt")
    assert (ran.code, ran.out) == (1, "")
    assert SMOLL in ran.err


@pytest.mark.parametrize(
    "command", [("run", "hello"), ("chat",), ("serve",), ("route",)], ids=lambda command: command[0]
)
def test_a_name_that_can_be_no_model_is_told_before_a_swarm_is_entered(
    command: tuple[str, ...], shoal: Shoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enter(*_: object, **__: object) -> None:
        pytest.fail("it looked for the name in a swarm")

    monkeypatch.setattr("shoal.cli.enter.member_of", enter)
    monkeypatch.setattr("shoal.cli.node.process.member_of", enter)
    for name, close in (("Nope", "models list"), ("SmolLM2-135M-Instrukt", SMOLL)):
        ran = shoal(command[0], name, *command[1:])
        assert (ran.code, ran.out) == (1, "")
        assert name in ran.err and close in ran.err


def test_a_name_cannot_drive_the_terminal() -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(models_table([{"name": "[red]x\x1b[2J", "here": False, "download": 5}]))
    assert "[red]x" in captured.get()
    assert "\x1b[2J" not in captured.get()


def test_an_adapter_from_peers_is_listed_and_removed_by_its_models_name(shoal: Shoal, tmp_path: Path) -> None:
    shape = ModelShape("fish", DIGEST, 6, 64, 128, 100)
    checkpoint = tmp_path / "fish"
    checkpoint.mkdir()
    save_file({"model.layers.1.mlp.up_proj.weight": np.zeros((8, 4), "f4")}, checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text('{"model_type": "llama"}')
    root = tmp_path / "home" / "adapters"
    folder = write_adapter(root / "one", checkpoint, ["up_proj"])
    KeptAdapters(root).keep(folder, read_adapter(folder).digest, "pirate", shape)
    (listed, *_) = shoal("models", "list", "--json").data["models"]
    assert (listed["name"], listed["kind"], listed["path"]) == ("fish:pirate", "adapter", str(folder))
    assert "fish:pirate" in shoal("models", "list").out
    assert shoal("models", "rm", "fish:pirate", "--json").data == {"removed": "fish:pirate"}
    assert not folder.exists()
    assert shoal("models", "rm", "fish:pirate").code == 1
