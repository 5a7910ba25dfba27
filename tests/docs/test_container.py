"""The Dockerfile, as far as it can be read without Docker: small, no root, no CUDA, made of what is there."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from shoal.config import OPTIONS
from tests.docs.test_docs import fault

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text("utf-8")
LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
STEPS = [tuple(line.split(None, 1)) for line in LINES if line.strip()]


def steps(word: str) -> list[str]:
    return [rest for name, rest in STEPS if name == word]


def test_it_is_built_in_one_stage_and_run_in_another() -> None:
    assert len(steps("FROM")) == 2
    final = TEXT[TEXT.rindex("\nFROM") :]
    assert "gcc" not in final
    assert "pip install" not in final
    assert all(":latest" not in image for image in steps("FROM"))


def test_all_that_it_copies_is_there_and_reaches_the_builder() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for copied in steps("COPY"):
        if copied.startswith("--from"):
            continue
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, pattern) for pattern in allowed), source


def test_it_runs_without_root_and_keeps_all_in_one_place() -> None:
    user = steps("USER")[-1]
    assert user.isdecimal() and int(user) > 0
    assert STEPS.index(("USER", user)) < STEPS.index(("ENTRYPOINT", '["shoal"]'))
    assert steps("VOLUME") == ["/data"]
    assert "SHOAL_HOME=/data" in TEXT


def test_its_settings_and_command_exist() -> None:
    for name in re.findall(r"SHOAL_(\w+)=", TEXT):
        assert name == "HOME" or name.lower() in OPTIONS
    (command,) = steps("CMD")
    assert fault(re.findall(r'"([^"]+)"', command)) is None


def test_what_it_installs_is_locked() -> None:
    installs = [
        part for run in steps("RUN") for part in run.split("&&") if "install" in part or "sync" in part
    ]
    assert sum("scripts/sync.sh" in part for part in installs) == 2
    for part in installs:
        if "apt-get" not in part and "install -d" not in part:
            assert "scripts/sync.sh" in part or "--no-deps" in part, part


def test_apt_leaves_nothing_behind() -> None:
    for run in steps("RUN"):
        if "apt-get" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run
    assert not steps("ADD")
