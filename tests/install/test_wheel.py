"""The wheel stands alone: pip and Python are all that a machine needs to install it and to get an answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import hatch_build
import pytest

ROOT = Path(__file__).parents[2]
INSTALL_WITHIN_S = 1500
ANSWER_WITHIN_S = 600

pytestmark = pytest.mark.swarm


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this folder, with what is locked."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = [str(Path(sys.executable).parent / "uv"), "build", "--wheel", "--python", sys.executable]
    run(
        [*uv, "--no-build-isolation", "--out-dir", str(folder), str(ROOT)], dict(os.environ), INSTALL_WITHIN_S
    )
    (built,) = folder.glob("*.whl")
    return built


def run(command: list[str], environ: dict[str, str], within_s: float) -> str:
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=within_s, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_it_has_the_kernels_of_every_level_the_page_and_libp2p_with_its_licences(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    machine = hatch_build.MACHINES.get(os.uname().machine, os.uname().machine)
    for level in hatch_build.LEVELS[machine]:
        assert f"shoal/executor/native/kernels-{level}.so" in names
    assert "shoal/gateway/page/built/index.html" in names
    assert "shoal/net/vendored/libp2p/peer/id.py" in names
    assert {Path(name).name for name in names if "libp2p-" in name and "/licenses/" in name} == {
        "LICENSE-APACHE",
        "LICENSE-MIT",
    }


def test_it_asks_for_nothing_that_is_not_on_an_index(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (metadata,) = [
            name for name in archive.namelist() if re.fullmatch(r"shoal-[\d.]+\.dist-info/METADATA", name)
        ]
        text = archive.read(metadata).decode()
    requires = [line for line in text.splitlines() if line.startswith("Requires-Dist:")]
    assert requires
    assert not [line for line in requires if " @ " in line or "libp2p" in line]


def test_it_answers_where_there_is_no_compiler_no_node_and_no_git(wheel: Path, tmp_path: Path) -> None:
    """The machine has Python and pip's settings; no tools, no home, no caches."""
    home, tools = tmp_path / "home", tmp_path / "tools"
    home.mkdir()
    tools.mkdir()
    told = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "LANG"))}
    machine = told | {"HOME": str(home), "PATH": str(tools), "PIP_NO_CACHE_DIR": "1"}
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv/bin"
    install = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-compile", str(wheel)]
    run(install, machine, INSTALL_WITHIN_S)
    kernels = "from shoal.executor.kernels import c_kernels; assert c_kernels.library() is not None"
    # Python compiles what is imported here once, and not in each of the demo's processes.
    imported = "import shoal.node.node, shoal.cli.main, shoal.client.connect, shoal.gateway.app"
    run([str(programs / "python"), "-c", f"{kernels}; {imported}"], machine, ANSWER_WITHIN_S)

    said = run(
        [str(programs / "shoal"), "demo", "--once", "--json", "--max-tokens", "4"], machine, ANSWER_WITHIN_S
    )
    assert json.loads(said)["text"].strip()
