"""A span has the same bits on every machine: each level of x86-64, and ARM."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from shoal.executor.kernels.built import NATIVE, kernels_built

pytestmark = pytest.mark.skipif(not kernels_built(), reason="the C kernels are not built")

PROGRAM = Path(__file__).with_name("span_digest.c")
FLAGS = ["-O1", "-ffp-contract=off", "-std=gnu11", "-Wno-psabi", f"-I{NATIVE}"]
SOURCES = [str(PROGRAM), *map(str, sorted(NATIVE.glob("*.c")))]

EXPECTED = """\
fp32 8511236ee521c229 a7cecc020af3b6eb
bf16 c670dbb75ee702b1 1bd4d628cd25038f
int8 4f4dc97056a0f79e 863181454889feea
int4 cd33448d67d7c128 e0516fcac5fd1eb1
4 bits and minima 79bc19cb61298355 3436de449497ccb6
4 bits in small groups e36c42443dcf8ead b0fdc580252f8bbf
8 bits in small groups b27174c6fe36ebe4 288be256824add9b
8 bits 0f5115edef9a9035 cd06ff48c6d8a334
w8a8 39ae453355282816 bccb1407cd8613ba
sent in bfloat16 975573e98158a90e 7c45247e68a07f66
sent in int8 b122bf049c3d30a6 4a2d34fdd0c33095
sent in int6 e8de61c262519705 ec684944b95772e5
"""
"""Of each layout of weights the hash with keys and values in bf16, and in int8; of each codec that of the
bytes that are sent, and of what is read of them.

They change only where the numerics are meant to: nodes from before and after give a session other bits.
"""


def compile_program(into: Path, *command: str) -> Path:
    subprocess.run([*command, "-o", str(into), "-lpthread", "-lm"], check=True)
    return into


def digests(*command: str) -> str:
    """What the program prints, with 1 and with 2 threads."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_every_level_of_this_cpu_gives_the_bits_that_are_written_here(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        pytest.skip("no C compiler")
    best = ctypes.CDLL(str(NATIVE / "kernels-v1.so")).cpu_level()
    built = [path for path in sorted(NATIVE.glob("kernels-v*.so")) if int(path.stem[-1]) <= best]
    for path in built:
        program = compile_program(
            tmp_path / path.stem, compiler, *FLAGS, str(PROGRAM), str(path), f"-Wl,-rpath,{NATIVE}"
        )
        assert digests(str(program)) == EXPECTED * 2, path.name


def test_arm_gives_them_too(tmp_path: Path) -> None:
    """On any other machine in an emulator: Debian's qemu-user, and its compiler for arm64."""
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("this machine is one: the other test has shown it")
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        reason = "no aarch64-linux-gnu-gcc or qemu-aarch64: scripts/setup.sh tests"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    program = compile_program(tmp_path / "arm", compiler, *FLAGS, "-static", *SOURCES)
    assert digests(emulator, str(program)) == EXPECTED * 2
