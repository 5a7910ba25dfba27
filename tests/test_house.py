"""The walls of the house: which part may import which, who reads the environment, how long a file may be."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_no_file_is_longer_than_one_reads_in_a_sitting(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 500


def calls_and_names(path: Path) -> set[str]:
    """Every dotted name that the file's code uses, such as ``os.environ``."""
    tree = ast.parse(path.read_text("utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name))}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_only_config_reads_the_environment_and_nobody_unpickles(path: Path) -> None:
    used = calls_and_names(path)
    forbidden = {"torch.load", "torch.save", "trust_remote_code", "eval", "exec"}
    if path.name != "config.py":
        forbidden |= {"os.environ", "os.getenv"}
    assert not used & forbidden


def test_remote_code_is_never_allowed() -> None:
    for path in SOURCES:
        assert not re.search(r"trust_remote_code\s*=\s*(?!False\b)", path.read_text("utf-8")), path


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src/shoal/py.typed").exists()
