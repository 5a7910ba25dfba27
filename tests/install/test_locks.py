"""What is installed is locked: by version and hash, without an address, and as pyproject.toml permits."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
CLIENTS = [*sorted((ROOT / "tests/clients").glob("requirements*.txt")), ROOT / "tests/graph/models.txt"]
CLIENTS.append(ROOT / "tests/ledger/compiler.txt")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
NPM = sorted(found for depth in ("", "*/") for found in ROOT.glob(f"[!.]*/{depth}package-lock.json"))
PINNED = re.compile(
    r"^(?P<pin>[a-z0-9-]+==\S+( ; .+?)?) \\\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)
ENVIRONMENTS = [
    {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "sys_platform": system,
        "platform_machine": machine,
    }
    for version in ("3.11", "3.12", "3.13", "3.14")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


def pins(lock: Path) -> dict[str, list[Requirement]]:
    """What the lock names: a package may have one version for an older Python and one for a newer."""
    found: dict[str, list[Requirement]] = {}
    for match in PINNED.finditer(lock.read_text()):
        pin = Requirement(match["pin"])
        found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


ASKED_FOR = [
    *((requirement, ["runtime", "torch"]) for requirement in PROJECT["project"]["dependencies"]),
    (PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["libp2p"], ["libp2p"]),
    *((requirement, ["build"]) for requirement in PROJECT["build-system"]["requires"]),
    *(
        (requirement, ["runtime", "build", "graph", "ledger", "development"])
        for requirement in PROJECT["project"]["optional-dependencies"]["dev"]
    ),
    *(
        (requirement, ["runtime", "build", "graph"])
        for extra in ("graph", "vision")
        for requirement in PROJECT["project"]["optional-dependencies"][extra]
    ),
    *(
        (requirement, ["runtime", "build", "graph", "ledger"])
        for requirement in PROJECT["project"]["optional-dependencies"]["ledger"]
    ),
    *(
        (requirement, [extra])
        for extra in ("postgres", "encrypted", "iroh", "fuzz")
        for requirement in PROJECT["project"]["optional-dependencies"][extra]
    ),
]
"""What pyproject.toml asks for, and the locks that must have it."""


@pytest.mark.parametrize("lock", [*LOCKS, *CLIENTS], ids=lambda path: path.stem)
def test_a_lock_holds_nothing_but_versions_with_hashes(lock: Path) -> None:
    rest = PINNED.sub("", lock.read_text())
    assert pins(lock)
    assert all(not line or line.startswith("#") for line in rest.splitlines()), rest


@pytest.mark.parametrize("lock", [*LOCKS, *CLIENTS, *NPM], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_lock_names_no_index(lock: Path) -> None:
    text = lock.read_text()
    if lock.suffix == ".json":
        packages = json.loads(text)["packages"]
        assert all(package.get("integrity") for name, package in packages.items() if name)
        # What remains of addresses says whom to thank.
        text = json.dumps({name: package | {"funding": None} for name, package in packages.items()})
    assert "://" not in text
    assert not re.search(r"^--?[a-z]", text, re.M)  # an option: --index-url, --find-links


@pytest.mark.parametrize(("requirement", "locks"), ASKED_FOR)
def test_what_is_asked_for_is_locked_in_a_version_that_is_permitted(
    requirement: str, locks: list[str]
) -> None:
    asked = Requirement(requirement)
    name = canonicalize_name(asked.name)
    locked = [pin for lock in locks for pin in pins(ROOT / f"locks/{lock}.txt").get(name, [])]
    for environment in ENVIRONMENTS:
        if asked.marker and not asked.marker.evaluate(environment):
            continue
        (pin,) = [pin for pin in locked if pin.marker is None or pin.marker.evaluate(environment)]
        assert asked.specifier.contains(next(iter(pin.specifier)).version)


@pytest.mark.parametrize("requirement", [requirement for requirement, _ in ASKED_FOR])
def test_every_version_that_is_permitted_ends_somewhere(requirement: str) -> None:
    operators = {specifier.operator for specifier in Requirement(requirement).specifier}
    assert operators == {">=", "<"}


def test_torch_is_locked_apart_once_for_each_of_its_builds() -> None:
    assert not any("torch" in pins(lock) for lock in LOCKS if not lock.stem.startswith("torch"))
    (cpu,) = pins(ROOT / "locks/torch-cpu.txt")["torch"]
    (other,) = pins(ROOT / "locks/torch.txt")["torch"]
    assert str(cpu.specifier) == f"{other.specifier}+cpu"


def test_without_an_accelerator_nothing_of_cuda_is_installed() -> None:
    assert list(pins(ROOT / "locks/torch-cpu.txt")) == ["torch"]
    for lock in LOCKS:
        if lock.stem != "torch":
            assert not [n for n in pins(lock) if n == "triton" or n.startswith(("nvidia-", "cuda-"))]


def test_no_package_is_locked_in_two_versions() -> None:
    seen: dict[str, set[str]] = {}
    for lock in LOCKS:
        if not lock.stem.startswith("torch"):
            for name, versions in pins(lock).items():
                seen.setdefault(name, set()).add(str(sorted(map(str, versions))))
    assert {name: versions for name, versions in seen.items() if len(versions) > 1} == {}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_is_here(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = re.findall(r"- run: (.+)", workflow.read_text())
    assert commands
    for command in commands:
        program, *arguments = command.split()
        if program == "make":
            assert set(arguments) <= targets
        elif program != "docker":
            assert os.access(ROOT / program, os.X_OK), command


def test_the_tests_run_on_every_python_that_is_permitted() -> None:
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    (tested,) = re.findall(r"python: \[(.+)\]", workflow)
    versions = [
        f"3.{minor}"
        for minor in range(30)
        if f"3.{minor}" in SpecifierSet(PROJECT["project"]["requires-python"])
    ]
    assert re.findall(r"[\d.]+", tested) == versions == sorted({e["python_version"] for e in ENVIRONMENTS})


def test_help_names_every_target_of_the_makefile() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", text, re.M)) - {"help"}
    assert set(re.findall(r'@echo "make ([a-z]+)', text)) == targets
    (phony,) = re.findall(r"^\.PHONY: (.+)", text, re.M)
    assert set(phony.split()) == targets | {"help"}
