"""The walls of the house: which part may import which, who reads the environment, how long a file may be."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from tests.conftest import LONGEST, pytest_ignore_collect

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for path in (ROOT / "src").rglob("*.py") if "vendored" not in path.parts)
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

# One line for each contract that breaks it, and the file that the line is put into.
TRESPASSES = {
    "A part imports only from the floors below it": ("client/__init__.py", "import shoal.node"),
    "No torch below the executor and the models": ("wire/__init__.py", "import torch"),
    "libp2p only in net": ("swarm/__init__.py", "import libp2p"),
    "No pickle, anywhere": ("executor/__init__.py", "import pickle"),
    "transformers only through the seam": ("models/text/codec.py", "import transformers"),
    "The product never imports its test doubles": ("node/__init__.py", "import shoal.testing"),
}


def load_scorecard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scorecard", ROOT / "scripts/scorecard.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["scorecard"] = module  # where dataclasses looks for the annotations
    spec.loader.exec_module(module)
    return module


scorecard = load_scorecard()


def lint_imports(root: Path) -> str:
    """What import-linter says about the package below ``root``."""
    run = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout + run.stderr


def test_every_contract_is_kept() -> None:
    said = lint_imports(ROOT)
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in said, said


def test_every_contract_notices_when_it_is_broken(tmp_path: Path) -> None:
    assert sorted(TRESPASSES) == sorted(contract["name"] for contract in CONTRACTS)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, line in TRESPASSES.values():
        with (tmp_path / "src/shoal" / file).open("a") as opened:
            opened.write(f"\n{line}\n")
    said = lint_imports(tmp_path)
    assert f"Contracts: 0 kept, {len(CONTRACTS)} broken." in said, said


def test_no_file_is_longer_than_one_reads_in_a_sitting() -> None:
    lines = {str(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {path: length for path, length in lines.items() if length > 500} == {}


FORBIDDEN = {"torch.load", "torch.save", "trust_remote_code", "eval", "exec", "os.environ", "os.getenv"}


def forbidden_names(text: str) -> set[str]:
    """Which of the forbidden names the code uses."""
    last = {name.rpartition(".")[2] for name in FORBIDDEN}
    used: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in last:
            used.add(ast.unparse(node))
    return used & FORBIDDEN


def test_only_config_reads_the_environment_and_nobody_unpickles() -> None:
    assert forbidden_names("a = os.environ['B']\nread = torch.load\nif eval: ...\n") == {
        "os.environ",
        "eval",
        "torch.load",
    }
    last = re.compile("|".join(name.rpartition(".")[2] for name in FORBIDDEN))
    texts = {path: path.read_text("utf-8") for path in SOURCES}
    found = {path: forbidden_names(text) for path, text in texts.items() if last.search(text)}
    for path in (path for path in found if path.name in ("config.py", "process_environ.py")):
        found[path] -= {"os.environ", "os.getenv"}
    assert {str(path): names for path, names in found.items() if names} == {}


def test_remote_code_is_never_allowed() -> None:
    for path in SOURCES:
        assert not re.search(r"trust_remote_code\s*=\s*(?!False\b)", path.read_text("utf-8")), path


@pytest.mark.parametrize(
    ("markers", "left_out"),
    [
        ("swarm", True),
        ("swarm and not models", True),
        ("swarm or models", None),
        ("not swarm", None),
        ("", None),
    ],
)
def test_a_run_by_markers_leaves_out_no_file_that_it_may_want(
    tmp_path: Path, markers: str, left_out: bool | None
) -> None:
    (tmp_path / "test_plain.py").write_text("@pytest.mark.models\ndef test(): ...\n")
    asked = SimpleNamespace(option=SimpleNamespace(markexpr=markers))
    assert pytest_ignore_collect(tmp_path / "test_plain.py", cast(Any, asked)) is left_out


def test_the_files_that_are_to_be_run_first_are_there_and_boot_processes() -> None:
    for name in LONGEST:
        assert "mark.swarm" in (ROOT / "tests" / name).read_text("utf-8"), name


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src/shoal/py.typed").exists()


@pytest.fixture(scope="module")
def card() -> Any:
    return scorecard.count(ROOT / "src/shoal")


def test_no_modules_import_one_another_not_even_for_their_types(card: Any) -> None:
    assert card.import_cycles == []


def test_no_folder_holds_more_files_than_one_can_survey(card: Any) -> None:
    assert card.crowded_folders == {}


def test_no_function_is_longer_than_a_screen(card: Any) -> None:
    assert card.functions_too_long == 0, card.function_longest


def test_no_public_name_has_two_meanings(card: Any) -> None:
    found = card.two_meanings
    assert not found, "\n".join(f"{name}: {', '.join(paths)}" for name, paths in found.items())


def test_a_token_is_followed_through_files_that_exist(card: Any) -> None:
    assert None not in card.journey.values(), card.journey
    assert list(card.journey) == list(scorecard.JOURNEY)
    assert len(card.journey) <= scorecard.MOST_STOPS


def package(folder: Path, **files: str) -> list[object]:
    """A package ``shoal`` with these files; ``__`` in a name stands for a slash."""
    for name, text in files.items():
        path = folder / "src/shoal" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "tests").mkdir(exist_ok=True)
    return scorecard.modules(folder / "src/shoal")


def test_a_cycle_is_noticed_in_a_function_and_under_type_checking(tmp_path: Path) -> None:
    found = package(
        tmp_path,
        client__a="if TYPE_CHECKING:\n    from shoal.client.b import B\n",
        client__b="def f():\n    from shoal.client import c\n",
        client__c="import shoal.client.a\n",
        node__d="from shoal.client.a import A\n",
    )
    graph = scorecard.imports(found)
    assert scorecard.cycles(graph) == [["shoal.client.a", "shoal.client.b", "shoal.client.c"]]
    assert scorecard.two_way_folders(found, graph) == []


def test_a_name_that_two_modules_define_is_noticed(tmp_path: Path) -> None:
    text = "class Ring: ...\nKV = Annotated[str, 1]\nStop = str | None\ndef load_span(): ...\n"
    spared = "class _Ring: ...\n_T = TypeVar('_T')\nLIMIT = 3\nlog = 4\ndef main(): ...\ndef load(): ...\n"
    found = package(tmp_path, a=text + spared, b=text + spared)
    assert list(scorecard.two_meanings(found)) == ["KV", "Ring", "Stop", "load_span"]


def test_a_card_counts_what_it_says(tmp_path: Path) -> None:
    package(
        tmp_path,
        one="def f(x: int) -> int:\n    # why\n    return x  # noqa: X\n\n\nclass ShoalError: ...\n",
        two="def g(x):\n    try: ...\n    except Exception: ...\nclass Busy(ShoalError): ...\n",
        net__direct="pass\n" * 90,
        net__long="def h():\n" + "    pass\n" * 90,
        **{f"crowd__f{number}": "" for number in range(17)},
    )
    card = scorecard.count(tmp_path / "src/shoal", ["one.py", "three.py", "net/carriers/direct.py"])
    assert (card.files, card.lines) == (21, 191)
    assert card.journey == {"one.py": 6, "three.py": None, "net/direct.py": 90}
    assert scorecard.journey_of({"net/direct.py": 9}, ["net/carriers/direct_pipe.py"]) == {"net/direct.py": 9}
    assert (card.typed_share, card.named_errors) == (1 / 3, 2)
    assert card.comments_per_100_lines == pytest.approx(100 / 191)
    assert card.broad_excepts_per_1000_lines == pytest.approx(1000 / 191)
    assert (card.function_longest, card.functions_too_long) == (("net/long.py::h", 91), 1)
    assert card.crowded_folders == {"crowd": 17}


def test_the_scorecard_prints_a_table_and_json(
    card: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "| files | 9 | " in "\n".join(scorecard.compared(dataclasses.replace(card, files=9), card))
    assert any(line.startswith("one token's journey") for line in scorecard.printed(card))
    monkeypatch.setattr(scorecard, "count", lambda source: card)  # which takes seconds, and has been tested
    monkeypatch.setattr(sys, "argv", ["scorecard.py", "--json"])
    scorecard.main()
    assert json.loads(capsys.readouterr().out)["files"] == card.files
