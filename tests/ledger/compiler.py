"""The compiler of the contracts, in an environment of its own: it needs older packages than we do.

``python -m tests.ledger.compiler`` writes what the package carries, after a change of a contract.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from shoal.ledger.contracts.artefacts import FILE, NAMES
from tests.packages import installed

HERE = Path(__file__).parent
SOURCES = FILE.parent


def compiler() -> Path:
    """The program ``vyper``."""

    def install(folder: Path) -> list[str]:
        venv.create(folder / "venv", with_pip=True)
        pip = [
            str(folder / "venv/bin/python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        return [*pip, "--require-hashes", "-r", str(folder / "compiler.txt")]

    return installed("vyper", HERE, ["compiler.txt"], install) / "venv/bin/vyper"


def compiled(name: str, folder: Path) -> dict[str, Any]:
    """One contract, as our files have it."""
    done = subprocess.run(
        [compiler(), "-f", "abi,bytecode,bytecode_runtime", f"{name}.vy"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    abi, creation, runtime = done.stdout.splitlines()
    return {"abi": json.loads(abi), "creation": creation, "runtime": runtime}


def compile_contracts() -> dict[str, Any]:
    """What the sources in the package come to, as its file has it."""
    return {name: compiled(name, SOURCES) for name in NAMES}


if __name__ == "__main__":
    FILE.write_text(json.dumps(compile_contracts(), indent=1) + "\n")
    sys.stdout.write(f"{FILE}\n")
