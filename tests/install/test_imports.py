"""What Shoal imports, it asks for itself: what others happen to bring along may be gone tomorrow."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/shoal"
VENDORED = SOURCE / "net/vendored"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def names(asked: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in asked}


DECLARED = names(
    PROJECT["project"]["dependencies"]
    + [
        one
        for extra in ("graph", "vision", "attest", "ledger", "postgres", "otel", "encrypted", "iroh")
        for one in EXTRAS[extra]
    ]
)
FOR_TESTS = DECLARED | names(EXTRAS["dev"])
"""What the test doubles may import."""
IN_THE_WHEEL = {
    Requirement(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["libp2p"]).name
}
BY_NAME = ("import_module", "find_spec")
"""Functions that import a module whose name is a text."""


def imports(source: str) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called),
                args=[ast.Constant(value=str(module)), *_],
            ) if called in BY_NAME:
                yield module


@cache
def of_others() -> dict[str, set[str]]:
    """By the name of a package of others, the files that import it."""
    found: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        if VENDORED not in file.parents:
            for module in imports(file.read_text()):
                found.setdefault(module.partition(".")[0], set()).add(str(file.relative_to(SOURCE)))
    known = {*sys.stdlib_module_names, *IN_THE_WHEEL, "shoal"}
    return {name: files for name, files in found.items() if name not in known}


def test_what_is_imported_is_declared() -> None:
    owners = metadata.packages_distributions()
    undeclared = {
        name: sorted(files)
        for name, files in of_others().items()
        if not {canonicalize_name(owner) for owner in owners[name]}
        & (FOR_TESTS if all(file.startswith("testing/") for file in files) else DECLARED)
    }
    assert not undeclared, undeclared


def test_an_import_is_found_however_it_is_written() -> None:
    source = "import a.b\ndef f():\n    from c.d import e\n    from . import own\n    find_spec('g.h')\n"
    assert list(imports(source)) == ["a.b", "c.d", "g.h"]
    assert {"numpy", "trio", "transformers"} <= of_others().keys()
