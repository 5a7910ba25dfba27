"""What the docs promise is there: commands, options, files, settings, and a word on every error."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from shoal import errors
from shoal.cli.main import app
from shoal.config import OPTIONS
from shoal.errors import ShoalError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(
    r"(?<![\w./~{<-])"
    r"((?:tests|src)/[\w/.-]*\w/?|(?:[\w.-]+/)*(?:[\w.-]+/|[\w-]+\.(?:py|sh|md|c|h|ts|svelte|txt)))"
    r"(?:::(\w+))?(?![\w/{<…])"
)
PART = re.compile(r"- `([\w/]+/)`: ")
"""Opens an item of a list that is about one folder: what it names lies below that."""
OF_A_USER = {"swarms/"}
"""Folders of whoever runs Shoal, not of its sources."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SHOAL: Any = typer.main.get_command(app)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shell_lines(text: str) -> Iterator[str]:
    """What a reader may type: the lines of shell blocks, and what stands in backticks."""
    for kind, block in FENCE.findall(text):
        if kind == "sh":
            yield from re.sub(r"\\\n", " ", block).splitlines()
    yield from INLINE.findall(FENCE.sub("", text))


def commands(line: str) -> Iterator[list[str]]:
    """The words of each `shoal …` in a line, behind `shoal`."""
    code = re.split(r"\s#\s|\s#$", line)[0]
    for part in re.split(r"\s*(?:&&|\|\||[;|]|, )\s*", code):
        try:
            words = shlex.split(part)
        except ValueError:
            words = part.split()
        starts = [place for place, word in enumerate(words) if word in ("shoal", ".venv/bin/shoal")]
        if starts and not (words[0] == "docker" and words[1] == "build"):
            yield words[starts[-1] + 1 :]


def fault(words: list[str]) -> str | None:
    """What is wrong with a command line, by the program's own tables; ``None`` when all of it exists."""
    here, path = SHOAL, "shoal"
    options = {name for option in here.params for name in (*option.opts, *option.secondary_opts)}
    for word in words:
        if word.startswith("-") and word != "-":
            name = word.split("=")[0]
            if name not in options | {"--help", "-h"}:
                return f"{path} has no option {name}"
        elif hasattr(here, "commands"):
            choices = word.split("|")  # list|pull
            unknown = [choice for choice in choices if choice not in here.commands]
            if unknown and re.fullmatch(r"[a-z][a-z-]*", unknown[0]):
                return f"{path} has no command {unknown[0]}"
            if unknown:
                return None  # an ellipsis, or a placeholder
            here, path = here.commands[choices[0]], f"{path} {choices[0]}"
            options |= {name for option in here.params for name in (*option.opts, *option.secondary_opts)}
    return None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_option_in_it_exists(page: Path) -> None:
    found = [words for line in shell_lines(page.read_text("utf-8")) for words in commands(line)]
    faults = [f"shoal {' '.join(words)}: {wrong}" for words in found if (wrong := fault(words))]
    assert not faults, "\n".join(faults)


def test_a_command_or_option_that_does_not_exist_would_be_noticed() -> None:
    assert fault(["status", "--watch", "--json"]) is None
    assert fault(["status", "--wtach"]) == "shoal status has no option --wtach"
    assert fault(["models", "lst"]) == "shoal models has no command lst"
    assert list(commands("shoal join CODE && shoal up --public  # both")) == [
        ["join", "CODE"],
        ["up", "--public"],
    ]
    assert (
        sum(1 for page in PAGES for line in shell_lines(page.read_text("utf-8")) for _ in commands(line)) > 60
    )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{named(page)}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), f"{named(page)}: {link}"


def named_paths(text: str) -> Iterator[tuple[str, str, str]]:
    """What a text names in backticks: the part that it is said of, a path, and what that file defines.

    A file without a folder is meant only where its part is known: elsewhere it may be a user's.
    """
    for item in re.split(r"\n(?=- |\n)", FENCE.sub("", text)):
        part = match[1] if (match := PART.match(item.lstrip("\n"))) else ""
        for code in INLINE.findall(item):
            for path, name in PATH.findall(code):
                if part or "/" in path or name:
                    yield part, path, name


def lost_paths(text: str) -> list[str]:
    """Which of these are nowhere below the root, ``src/shoal`` or their part."""
    return [path + (name and f"::{name}") for part, path, name in named_paths(text) if lost(part, path, name)]


def lost(part: str, path: str, name: str) -> bool:
    bases = (ROOT, ROOT / "src/shoal", ROOT / "src/shoal" / part)
    places = [place for base in bases if (place := base / path).exists()]
    if path in OF_A_USER or not name:
        return path not in OF_A_USER and not places
    return not any(
        re.search(rf"^(\s*(async )?def |class )?{name}\b", place.read_text("utf-8"), re.M) for place in places
    )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_and_folder_that_it_names_exists(page: Path) -> None:
    paths = lost_paths(page.read_text("utf-8"))
    assert not paths, f"{named(page)}: {', '.join(paths)}"


def test_a_file_folder_or_function_that_does_not_exist_would_be_noticed() -> None:
    found = "`wire/session.py`, `net/carriers/`, `tests/docs`, `src/shoal/types.py::Span`, `owner/name`"
    assert lost_paths(found) == []
    gone = "in `wire/sessions.py`, below `net/carrier/`: `wire/session.py::holder` and `tests/none`"
    assert lost_paths(gone) == [
        "wire/sessions.py",
        "net/carrier/",
        "wire/session.py::holder",
        "tests/none",
    ]
    assert lost_paths("- `net/`: `carriers/`, `channel.py`\n  and `session.py`") == ["session.py"]
    assert sum(1 for page in PAGES for _ in named_paths(page.read_text("utf-8"))) > 150


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_and_variable_in_it_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in shell_lines(text):
        if line.startswith("make "):
            assert line.split()[1] in targets, f"{named(page)}: {line}"
    for variable in re.findall(r"\bSHOAL_([A-Z_]+[A-Z])\b", text):
        assert variable == "HOME" or variable.lower() in OPTIONS, f"{named(page)}: SHOAL_{variable}"


def every_error(root: type[ShoalError] = ShoalError) -> Iterator[type[ShoalError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from every_error(child)


TROUBLE = (ROOT / "docs/troubleshooting.md").read_text("utf-8")


@pytest.mark.parametrize("error", list(every_error()), ids=lambda error: error.code)
def test_every_error_is_explained(error: type[ShoalError]) -> None:
    assert f"`{error.code}`" in TROUBLE


def next_commands() -> Iterator[tuple[str, str]]:
    """Each next command that the program may tell a user, and where; what is filled in reads ``X``."""
    for path in sorted((ROOT / "src/shoal").rglob("*.py")):
        if "vendored" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "next_command":
                for text in texts(node.value):
                    yield str(path.relative_to(ROOT)), text


def texts(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            yield "".join(v.value if isinstance(v, ast.Constant) else "X" for v in values)
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts(body)
            yield from texts(orelse)
        case _:
            pass


def test_every_next_command_exists() -> None:
    told = [(where, text) for where, text in next_commands() if text.startswith("shoal ")]
    assert len(told) > 20
    for where, text in told:
        for words in commands(text.replace(" or ", ", ").replace(" to begin one", "")):
            assert fault(words) is None, f"{where}: {text}: {fault(words)}"
