"""Whether torch could find an accelerator here, told from files: to import it takes seconds.

Two things are needed, and both can be seen without torch: a driver's files, and a torch that is built for it,
which its ``version.py`` says. A machine that lacks either computes on its CPU, and starts as fast as before.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Maker = Literal["NVIDIA", "AMD", "Intel", "Apple"]
BUILT_FOR: dict[Maker, str] = {"NVIDIA": "cuda", "AMD": "hip", "Intel": "xpu"}
"""What ``torch/version.py`` names the software of each maker; on a Mac every build has Apple's."""
INTEL = "0x8086"
"""The maker's number on the PCI bus."""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """Which torch is installed."""

    version: str
    built_for: frozenset[str]
    """Of ``cuda``, ``hip`` and ``xpu``."""


def torch_build() -> TorchBuild | None:
    """The torch that would be imported, read and not run; ``None`` where there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text("utf-8")
    except OSError:
        return None
    return read_build(text)


def read_build(text: str) -> TorchBuild:
    """What ``torch/version.py`` says."""
    found = dict(re.findall(r"^(\w+)\s*(?::[^=\n]+)?=\s*['\"]([^'\"]*)['\"]", text, re.MULTILINE))
    return TorchBuild(
        found.get("__version__", "of an unknown version"), frozenset(BUILT_FOR.values()) & found.keys()
    )


def makers_here(
    root: Path = Path("/"), system: str = sys.platform, machine: str = platform.machine()
) -> list[Maker]:
    """Whose accelerators have left a driver's files under ``root``."""
    if system == "darwin":
        return ["Apple"] if machine == "arm64" else []
    if system == "win32":
        libraries = root / "Windows" / "System32"
        names: dict[Maker, str] = {"NVIDIA": "nvcuda.dll", "Intel": "ze_loader.dll"}
        return [maker for maker, name in names.items() if (libraries / name).exists()]
    found: list[Maker] = []
    if any(root.glob("dev/nvidia[0-9]*")) or (root / "dev/dxg").exists():  # dxg: a GPU as WSL shows it
        found.append("NVIDIA")
    if (root / "dev/kfd").exists():
        found.append("AMD")
    if any(_read(vendor) == INTEL for vendor in root.glob("sys/class/drm/renderD*/device/vendor")):
        found.append("Intel")
    return found


def why_none(makers: list[Maker], build: TorchBuild | None) -> str:
    """Why torch cannot find an accelerator, as a clause; empty where it may, and is worth importing."""
    if build is None:
        return "torch is not installed"
    if not makers:
        also = "" if build.built_for else f", and torch {build.version} is built for the CPU alone"
        return f"no accelerator's driver is on this machine{also}"
    if "Apple" in makers or any(BUILT_FOR[maker] in build.built_for for maker in makers):
        return ""
    return f"torch {build.version} is not built for the accelerator that is here ({' and '.join(makers)})"


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
