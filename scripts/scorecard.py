"""The figures of docs/house.md, counted from the sources alone: nothing is imported, nothing is run.

python scripts/scorecard.py [--json] [--source src/shoal] [--before ANOTHER/src/shoal]
"""

from __future__ import annotations

import argparse
import ast
import collections
import dataclasses
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

JOURNEY = (
    "client/generate.py",
    "client/session.py",
    "client/ring/ring.py",
    "client/ring/results.py",
    "wire/messages.py",
    "wire/framing.py",
    "net/channel.py",
    "net/outbox.py",
    "net/carriers/direct_pipe.py",
    "node/server.py",
    "node/hop.py",
    "wire/hop_queue.py",
    "executor/engine.py",
    "executor/batcher.py",
    "executor/fused.py",
)
"""What one reads to follow a token through a hop and back. Where code moves out of one, add its new file."""
FORMERLY = {"net/carriers/direct_pipe.py": "net/direct.py"}
"""In which file an older tree has what is in a file of the journey now."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
TEXT_OR_COMMENT = re.compile(
    r"""\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}"""
    r"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<comment>\#[^\n]*)""",
    re.DOTALL,
)
"""A text in quotes, in which # begins nothing, or a comment. ``tokenize`` takes ten times as long."""
PRAGMA = re.compile(r"#\s*(noqa|type:|pyright:|pragma|fmt:|ruff:)")
MOST_FILES, MOST_LINES, P95, LONGEST, COMMENTS = 16, 3000, 30, 80, 3.0
MOST_STOPS = 15


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    path: Path
    """Below the package's folder."""
    name: str
    """Dotted, as an import statement spells it."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def folder(self) -> str:
        return str(self.path.parent)

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in self.nodes if isinstance(node, Function)]

    @cached_property
    def comments(self) -> int:
        """Comments that a reader gets something from: not those which speak to a tool."""
        found = (match["comment"] for match in TEXT_OR_COMMENT.finditer(self.text))
        return sum(comment is not None and not PRAGMA.match(comment) for comment in found)


def modules(source: Path) -> list[Module]:
    """Every file of the package in the folder ``source``, without vendored packages."""
    found: list[Module] = []
    for path in sorted(source.rglob("*.py")):
        below = path.relative_to(source)
        if "vendored" in below.parts:
            continue
        parts = below.with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.append(Module(below, ".".join((source.name, *parts)), path.read_text("utf-8")))
    return found


def imports(package: list[Module]) -> dict[str, set[str]]:
    """Which modules of the package each one imports, anywhere in it: in functions and for types too."""
    known = {module.name for module in package}
    return {module.name: set(_imported(module, known)) - {module.name} for module in package}


def _imported(module: Module, known: set[str]) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.name.split(".")
                up = node.level - (module.path.name == "__init__.py")
                base = ".".join([*here[: len(here) - up], *filter(None, [node.module])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                if target in known or base in known:
                    yield target if target in known else base


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules of which each one imports, over others, itself."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def two_way_folders(package: list[Module], graph: dict[str, set[str]]) -> list[list[str]]:
    """The pairs of folders that import each other, by the imports of their modules."""
    folder = {module.name: module.folder for module in package}
    edges = {(folder[a], folder[b]) for a, targets in graph.items() for b in targets}
    return sorted([a, b] for a, b in edges if a < b and (b, a) in edges)


def two_meanings(package: list[Module]) -> dict[str, list[str]]:
    """The public names that two modules define, with these modules.

    Names are classes, type aliases and functions of two or more words. A function of one word is called
    through its module (``records.read``), which says what it reads.
    """
    found: dict[str, set[str]] = collections.defaultdict(set)
    for module in package:
        for node in module.tree.body:
            name = _defined(node)
            if name and not name.startswith("_"):
                found[name].add(str(module.path))
    return {name: sorted(paths) for name, paths in sorted(found.items()) if len(paths) > 1}


def _defined(node: ast.stmt) -> str | None:
    """The class, type alias or function of two words that a statement defines."""
    match node:
        case ast.ClassDef(name=name):
            return name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name if "_" in name.strip("_") else None
        case (
            ast.Assign(targets=[ast.Name(id=name)])
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr())
        ):
            constant = name.isupper() and "Annotated" not in ast.unparse(node)
            return name if name.lstrip("_")[:1].isupper() and not constant else None
        case _:
            alias = getattr(node, "name", None)  # ``type X = …``, of which Python 3.11 has no node
            return alias.id if isinstance(alias, ast.Name) else None


def public_functions(package: list[Module]) -> list[Function]:
    """Functions of modules and methods of classes whose names, and whose class's, begin without ``_``."""
    found: list[Function] = []
    for module in package:
        classes = [n for n in module.nodes if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
        for body in [module.tree.body, *(node.body for node in classes)]:
            found += [node for node in body if isinstance(node, Function) and node.name[0] != "_"]
    return found


def is_typed(function: Function) -> bool:
    """Whether every argument but ``self`` and ``cls``, and the result, has a type."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    untyped = [arg for arg in named if arg and not arg.annotation and arg.arg not in ("self", "cls")]
    return function.returns is not None and not untyped


def _last_name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def broad_excepts(module: Module) -> int:
    """How often everything is caught: ``except:``, ``except Exception`` and ``suppress(Exception)``."""
    broad = {"Exception", "BaseException"}
    count = 0
    for node in module.nodes:
        if isinstance(node, ast.ExceptHandler):
            names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else broad
            count += bool(names & broad)
        elif isinstance(node, ast.Call) and _last_name(node.func).endswith("suppress"):
            count += any(isinstance(arg, ast.Name) and arg.id in broad for arg in node.args)
    return count


def named_errors(package: list[Module]) -> list[str]:
    """The classes that descend from ``ShoalError``, and it."""
    bases: dict[str, set[str]] = {}
    for module in package:
        for node in module.nodes:
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).split(".")[-1] for base in node.bases}
    found = {"ShoalError"} & set(bases)
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return sorted(found)


def percentile(values: Iterable[int], share: float) -> int:
    """The least of the values that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0


@dataclass(frozen=True)
class Folder:
    files: int
    """On this level, ``__init__.py`` not counted."""
    lines: int
    """On this level."""


@dataclass(frozen=True)
class Scorecard:
    """Everything counted, by the names that ``--json`` prints."""

    folders: dict[str, Folder]
    lines: int
    files: int
    largest_file: tuple[str, int]
    crowded_folders: dict[str, int]
    function_p95: int
    function_longest: tuple[str, int]
    functions_too_long: int
    import_cycles: list[list[str]]
    two_way_folders: list[list[str]]
    journey: dict[str, int | None]
    typed_share: float
    documented_share: float
    comments_per_100_lines: float
    broad_excepts_per_1000_lines: float
    named_errors: int
    test_lines_per_line: float
    two_meanings: dict[str, list[str]]


def journey_of(sizes: dict[str, int], journey: Iterable[str]) -> dict[str, int | None]:
    """Lines of each file of the journey; ``None`` for one that is not there.

    Before folders had folders, a file lay one level up: ``client/ring.py`` for ``client/ring/ring.py``.
    """
    found: dict[str, int | None] = {}
    for path in journey:
        above = str(Path(path).parent.parent / Path(path).name)
        there = next((p for p in (path, above, FORMERLY.get(path)) if p in sizes), path)
        found[there] = sizes.get(there)
    return found


def count(source: Path, journey: Iterable[str] = JOURNEY) -> Scorecard:
    """The scorecard of the package in the folder ``source``, with its tests in ``../../tests``."""
    package = modules(source)
    graph = imports(package)
    lines = sum(module.lines for module in package)
    lengths = {
        f"{module.path}::{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module in package
        for node in module.functions
    }
    by_folder = itertools.groupby(sorted(package, key=lambda m: m.folder), key=lambda m: m.folder)
    folders = {
        name: Folder(sum(m.path.name != "__init__.py" for m in inside), sum(m.lines for m in inside))
        for name, group in by_folder
        for inside in [list(group)]
    }
    sizes = {str(module.path): module.lines for module in package}
    public = public_functions(package)
    tests = sum(len(p.read_text("utf-8").splitlines()) for p in (source.parents[1] / "tests").rglob("*.py"))
    return Scorecard(
        folders=folders,
        lines=lines,
        files=len(package),
        largest_file=max(sizes.items(), key=lambda item: item[1]),
        crowded_folders={name: f.files for name, f in folders.items() if f.files > MOST_FILES},
        function_p95=percentile(lengths.values(), 0.95),
        function_longest=max(lengths.items(), key=lambda item: item[1]),
        functions_too_long=sum(length > LONGEST for length in lengths.values()),
        import_cycles=cycles(graph),
        two_way_folders=two_way_folders(package, graph),
        journey=journey_of(sizes, journey),
        typed_share=sum(map(is_typed, public)) / len(public),
        documented_share=sum(ast.get_docstring(node) is not None for node in public) / len(public),
        comments_per_100_lines=100 * sum(module.comments for module in package) / lines,
        broad_excepts_per_1000_lines=1000 * sum(map(broad_excepts, package)) / lines,
        named_errors=len(named_errors(package)),
        test_lines_per_line=tests / lines,
        two_meanings=two_meanings(package),
    )


def rows(card: Scorecard) -> Iterator[tuple[str, str, str]]:
    """What is counted, how much, and the goal where there is one."""
    stops = [length for length in card.journey.values() if length is not None]
    missing = [path for path, length in card.journey.items() if length is None]
    most = max(card.folders.items(), key=lambda item: item[1].files)
    yield "lines", f"{card.lines:,}", ""
    yield "files", f"{card.files:,}", ""
    yield "largest file", "{} ({})".format(*card.largest_file), ""
    yield "most files on one level", f"{most[0]} ({most[1].files})", f"≤ {MOST_FILES}"
    yield f"folders with more than {MOST_FILES}", str(len(card.crowded_folders)), "0"
    yield "function, 95th percentile", f"{card.function_p95} lines", f"≤ {P95}"
    yield "longest function", "{} ({})".format(*card.function_longest), f"≤ {LONGEST}"
    yield "import cycles", str(len(card.import_cycles)), "0"
    yield "modules in a cycle", str(sum(map(len, card.import_cycles))), "0"
    rooms = sum(b.startswith(f"{a}/") or a == "." for a, b in card.two_way_folders)
    each_other = f"{len(card.two_way_folders)} ({rooms} of them a folder and one inside of it)"
    yield "folders that import each other", each_other, ""
    absent = f", {len(missing)} not found: {', '.join(missing)}" if missing else ""
    goal = f"≤ {MOST_LINES:,} in {MOST_STOPS}"
    yield "one token's journey", f"{sum(stops):,} lines in {len(stops)} files{absent}", goal
    yield "public functions typed", f"{card.typed_share:.1%}", "100%"
    yield "public functions documented", f"{card.documented_share:.1%}", ""
    yield (
        "comments per 100 lines",
        f"{card.comments_per_100_lines:.2f}",
        f"{COMMENTS:.0f} where a reason is needed",
    )
    yield "broad excepts per 1,000 lines", f"{card.broad_excepts_per_1000_lines:.2f}", ""
    yield "named errors", str(card.named_errors), ""
    yield "lines of tests per line of source", f"{card.test_lines_per_line:.2f}", ""
    yield "names with two meanings", str(len(card.two_meanings)), "0"


def printed(card: Scorecard) -> Iterator[str]:
    """The lines of the report."""
    for what, how_much, goal in rows(card):
        yield f"{what:34} {how_much:44} {goal}".rstrip()
    yield from ("", "folder (this level)                files  lines")
    for name, folder in card.folders.items():
        yield f"{name:34} {folder.files:5}  {folder.lines:5}"
    yield from ("", "one token's journey")
    yield from (f"  {path:32} {length or 'not found'}" for path, length in card.journey.items())
    for title, groups in (
        ("import cycles", card.import_cycles),
        ("folders that import each other", card.two_way_folders),
        ("names with two meanings", [[f"{name}:", *paths] for name, paths in card.two_meanings.items()]),
    ):
        if groups:
            yield from ("", title, *(f"  {' '.join(group)}" for group in groups))


def compared(before: Scorecard, after: Scorecard) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield from ("| | before | after | goal |", "|---|---|---|---|")
    for (what, then, _), (_, now, goal) in zip(rows(before), rows(after), strict=True):
        yield f"| {what} | {then} | {now} | {goal} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what docs/house.md sets goals for.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--source", type=Path, default=Path(__file__).parents[1] / "src/shoal", help="the package"
    )
    parser.add_argument(
        "--before", type=Path, help="the same package in an older tree: print both as a table"
    )
    given: Any = parser.parse_args()
    card = count(given.source.resolve())
    if given.before:
        sys.stdout.write("\n".join(compared(count(given.before.resolve()), card)) + "\n")
    elif given.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(card), indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(printed(card)) + "\n")


if __name__ == "__main__":
    main()
