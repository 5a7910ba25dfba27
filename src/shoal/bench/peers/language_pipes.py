"""language-pipes as its users run it: nodes that host layers, one of them with the ends and an HTTP API."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from shoal.bench.models import bench_folder
from shoal.bench.peers.programs import (
    HOST,
    START_WITHIN_S,
    Streamed,
    ask,
    ask_together,
    free_port,
    is_made,
    make_venv,
    package_version,
    running_program,
)
from shoal.config import Settings
from shoal.errors import DeadlineExceeded, UnsupportedModel
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.store.local_model import LocalModel
from shoal.progress import Progress
from shoal.types import Span

REQUIREMENT = "language-pipes==2.5.0"
MODEL = "shoal/measured"
"""How the model is called there: an owner and a name."""
JOBS = 64
"""Requests that a node takes at once; by default it refuses the sixth."""
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class LanguagePipes:
    """A pipe of nodes that covers the model. Made by :func:`language_pipes`."""

    port: int

    async def ask(self, text: str, tokens: int) -> Streamed:
        """One request."""
        return await ask(self.port, CHAT, _body(text, tokens))

    async def requests_rate(self, texts: Sequence[str], tokens: int) -> float:
        """Tokens in a second over requests that are made at once, their prompts included."""
        bodies = [_body(text, tokens) for text in texts]
        return await ask_together(self.port, CHAT, bodies, unseen=1)  # the last is computed, and not sent


def pipes_folder(settings: Settings) -> Path:
    """Where its virtual environment is, or would be."""
    return bench_folder(settings) / "language-pipes"


def has_pipes(settings: Settings) -> bool:
    """Whether it is installed there."""
    return (pipes_folder(settings) / "bin" / "language-pipes").exists()


def pipes_version(settings: Settings) -> str:
    """Which one is installed there."""
    found = sorted(pipes_folder(settings).glob("lib/python*/site-packages"))
    return package_version(found[0] if found else pipes_folder(settings), REQUIREMENT)


def pipes_command(settings: Settings) -> str:
    """What a person would type to install it."""
    folder = pipes_folder(settings)
    return f"python -m venv {folder} && {folder}/bin/pip install {REQUIREMENT}"


async def fetch_pipes(settings: Settings, progress: Progress) -> None:
    """Install the version that is measured, unless the user installed one himself.

    Raises:
        ShoalError: it cannot be installed.
    """
    if not has_pipes(settings) or is_made(pipes_folder(settings)):
        progress("installing language-pipes", 0, 0)
        await make_venv(pipes_folder(settings), REQUIREMENT)


def _body(text: str, tokens: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_completion_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }


@asynccontextmanager
async def language_pipes(
    settings: Settings, model: LocalModel, spans: Sequence[Span], folder: Path, progress: Progress
) -> AsyncGenerator[LanguagePipes]:
    """Start a node for each span, one after the other, each with ``settings.threads`` threads.

    Args:
        folder: for their configurations and logs.

    Raises:
        UnsupportedModel: the model's weights lie in a GGUF file, which it does not read.
        ShoalError: a node did not come up.
    """
    if any(entry.file.suffix == ".gguf" for entry in open_checkpoint(model.path).tensors.values()):
        raise UnsupportedModel(
            f"{model.name} is a GGUF file, which language-pipes does not read",
            next_command="shoal bench peers --model random-1.1b",
        )
    venv = pipes_folder(settings)
    progress(f"starting {len(spans)} nodes of language-pipes", 0, 0)
    models = folder / "models"
    (models / MODEL).mkdir(parents=True)
    (models / MODEL / "data").symlink_to(model.path.resolve())
    peers = [free_port() for _ in spans]
    api = free_port()
    async with AsyncExitStack() as stack:
        for number, span in enumerate(spans):
            home = folder / f"node-{number}"
            home.mkdir()
            (home / "node.toml").write_text(node_config(model, span, number, peers, api))
            environ = {
                "HOME": str(home),
                "LP_APP_DIR": str(home),
                "LP_MODEL_DIR": str(models),
                "OMP_NUM_THREADS": str(settings.threads),
                "HF_HUB_OFFLINE": "1",
            }
            command = [venv / "bin" / "language-pipes", "-c", home / "node.toml", "run"]
            log = folder / f"language-pipes-{number}.log"
            await stack.enter_async_context(running_program(command, environ, peers[number], log))
            await _says(log, f"Layers {span.start}-{span.end - 1} for {MODEL} successfully loaded")
        await _says(folder / "language-pipes-0.log", f"End Model for {MODEL} loaded")
        pipes = LanguagePipes(api)
        await _answers(pipes)
        yield pipes


def node_config(model: LocalModel, span: Span, number: int, peers: Sequence[int], api: int) -> str:
    """The TOML of a node: the first has the ends and the API, the others come to it.

    A node takes as many layers as fit into ``memory``: half a layer more than its span has.
    """
    lines = [f"node_id = {json.dumps(f'node-{number}')}", f"peer_port = {peers[number]}"]
    lines += [f"network_ip = {json.dumps(HOST)}", f"max_node_jobs = {JOBS}", f"max_api_jobs = {JOBS}"]
    if number == 0:
        lines += [f"job_port = {api}", f"end_models = [{json.dumps(MODEL)}]"]
    else:
        lines.append(f"bootstrap_nodes = [{{address = {json.dumps(HOST)}, port = {peers[0]}}}]")
    gib = (len(span) + 0.5) * model_layer_bytes(model) / 2**30
    lines.append(
        f'layer_models = [{{model_id = "{MODEL}", device = "cpu", memory = {gib:.6f}, data_type = 16}}]'
    )
    return "\n".join(lines) + "\n"


def model_layer_bytes(model: LocalModel) -> int:
    """Bytes of block 0 in bfloat16, in which language-pipes holds any checkpoint."""
    total = 0
    for name, entry in open_checkpoint(model.path).tensors.items():
        if name.startswith("model.layers.0."):
            count = 1
            for size in entry.shape:
                count *= size
            total += 2 * count
    return total


async def _says(log: Path, words: str) -> None:
    """Wait until a program has written ``words``."""
    with trio.move_on_after(START_WITHIN_S):
        while words not in await trio.Path(log).read_text("utf-8", errors="replace"):  # noqa: ASYNC110 - its file
            await trio.sleep(0.2)
        return
    raise DeadlineExceeded(
        f"{log.stem} did not load its layers in {START_WITHIN_S:.0f} s", check=f"read {log}"
    )


async def _answers(pipes: LanguagePipes) -> None:
    """Wait until the pipe is complete, which the first node hears a little later than its peer says so."""
    await trio.sleep(2)
    await pipes.ask("w3 w4", 4)
