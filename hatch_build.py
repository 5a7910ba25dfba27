"""Compiles the kernels when Shoal is built or installed: one library for each level of the CPU at hand.

Without a C compiler the build goes on and says so: Shoal then runs on torch's own kernels, more slowly.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("src/shoal/executor/native")
FLAGS = ["-O3", "-ffp-contract=off", "-std=gnu11", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-psabi"]
LEVELS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "v1": ["-march=x86-64"],
        "v3": ["-march=x86-64-v3"],
        "v4": ["-march=x86-64-v4", "-mavx512vnni"],
    },
    "aarch64": {"v1": []},
}
MACHINES = {"AMD64": "x86_64", "arm64": "aarch64"}


class KernelsHook(BuildHookInterface):
    """Puts ``kernels-<level>.so`` beside the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for library in compile_kernels(Path(self.root)):
            build_data["artifacts"].append(str(library.relative_to(self.root)))


def compile_kernels(root: Path) -> list[Path]:
    """Compile every level of this machine's architecture; returns the libraries made."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    levels = LEVELS.get(MACHINES.get(platform.machine(), platform.machine()), {"v1": []})
    if compiler is None or sys.platform == "win32":
        print(
            "shoal: no C compiler (cc): the kernels are left out, and CPU nodes will be slower",
            file=sys.stderr,
        )
        return []
    sources = sorted(str(path) for path in (root / SOURCES).glob("*.c"))
    made: list[Path] = []
    for level, flags in levels.items():
        library = root / SOURCES / f"kernels-{level}.so"
        # Under another name first: a process that has the old library open must not see it change.
        fresh = library.with_suffix(".new")
        subprocess.run(
            [*compiler.split(), *FLAGS, *flags, *sources, "-o", str(fresh), "-lpthread", "-lm"], check=True
        )
        fresh.replace(library)
        made.append(library)
    return made


if __name__ == "__main__":
    for made_library in compile_kernels(Path(__file__).parent):
        print(made_library)
