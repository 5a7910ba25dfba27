"""Shoal beside llama.cpp and language-pipes: the same weights, machine and threads, in turns."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from shoal.bench.executor import PREFILL, load, torch_thread
from shoal.bench.models import bench_folder, measured_model
from shoal.bench.one import DEPTH, STEPS, OneProcess
from shoal.bench.peers.ggufs import write_gguf
from shoal.bench.peers.language_pipes import language_pipes
from shoal.bench.peers.llama_cpp import TYPES, LlamaCpp, find_llama_cpp, requests_rate
from shoal.bench.results import (
    BenchReport,
    Contender,
    Expected,
    Measurement,
    compared,
    in_turns,
)
from shoal.bench.roof import Roof, find_roof
from shoal.bench.through import SwarmDecoder, through
from shoal.config import Settings
from shoal.errors import ShoalError, UnsupportedModel, UsageError, as_shoal_error
from shoal.executor.thread import ComputeThread
from shoal.local.processes import split
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.progress import Progress
from shoal.types import Format

REQUEST_TOKENS = 32
"""Tokens of an answer."""
TRIES = 2
"""Failures of another program after which it is asked no more."""
WORDS = 60
"""Words of a request's prompt. With 64 tokens, two whole chunks, language-pipes never answers."""


@dataclass(frozen=True, slots=True)
class PeersBench:
    """What is compared."""

    formats: Sequence[Format]
    nodes: int
    sessions: int
    """Of the measurements with many."""
    rounds: int
    llama_cpp: Path | None
    """Where its programs are; ``None`` builds them."""


@dataclass(frozen=True, slots=True)
class Field:
    """All that measurements of one format need."""

    settings: Settings
    model: LocalModel
    asked: PeersBench
    format: Format
    folder: Path
    """For logs and configurations, gone afterwards."""
    roof: Roof
    progress: Progress
    prompts: tuple[str, ...]
    token_ids: tuple[list[int], ...]
    """The prompts as every program tokenizes them."""


async def measure_peers(settings: Settings, asked: PeersBench, progress: Progress) -> BenchReport:
    """Measure each format of Shoal beside llama.cpp's nearest type, and bf16 beside language-pipes.

    Raises:
        UsageError: a format that llama.cpp has none for; its programs are not where they should be.
        UnsupportedModel: the model is not a Llama with a tokenizer.
        ShoalError: the model or a program cannot be had.
    """
    if unknown := [format for format in asked.formats if format not in TYPES]:
        raise UsageError(
            f"llama.cpp is not compared in {unknown[0]}", check=f"choose one of: {', '.join(TYPES)}"
        )
    llama = await find_llama_cpp(asked.llama_cpp, settings, progress)
    settings, model = await trio.to_thread.run_sync(measured_model, settings, progress)
    prompts = tuple(" ".join(f"w{7 * i + j}" for j in range(WORDS)) for i in range(asked.sessions))
    token_ids = tuple(await trio.to_thread.run_sync(_tokenized, model, prompts))
    bf16 = bench_folder(settings) / f"{model.digest.removeprefix('sha256:')[:16]}.gguf"
    progress("writing a GGUF file of the same weights", 0, 0)
    await trio.to_thread.run_sync(write_gguf, model, bf16)
    results: list[Measurement] = []
    notes: list[str] = []
    with torch_thread() as thread:
        roof = await find_roof(thread, settings, model, asked.formats, progress)
        for format in asked.formats:
            file = _own_file(model) if format == "published" else await llama.quantize(bf16, format)
            with TemporaryDirectory(prefix="shoal-bench-") as folder:
                field = Field(
                    settings, model, asked, format, Path(folder), roof, progress, prompts, token_ids
                )
                results += await _one_format(field, llama, file, notes)
    title = f"{model.name} beside llama.cpp and language-pipes"
    found = compared(results, _pairs(asked))
    return BenchReport(title, roof.described(), tuple(found), notes=tuple(notes))


def _own_file(model: LocalModel) -> Path:
    """The GGUF file that a model was published in; of several the first, which names the others."""
    file = open_checkpoint(model.path).files[0]
    if file.suffix != ".gguf":
        raise UsageError(
            f"{model.name} was not published as a GGUF file, which is what llama.cpp reads",
            check="choose another format, or give a GGUF file as --model",
        )
    return file


def _tokenized(model: LocalModel, prompts: Sequence[str]) -> list[list[int]]:
    codec = TextCodec.load(model.path)
    if not codec.has_template:
        raise UnsupportedModel(f"{model.name} has no chat template, which language-pipes needs")
    return [codec.prompt([{"role": "user", "content": prompt}]).token_ids for prompt in prompts]


async def _one_format(field: Field, llama: LlamaCpp, file: Path, notes: list[str]) -> list[Measurement]:
    asked, format = field.asked, field.format
    async with AsyncExitStack() as stack:
        thread = stack.enter_context(torch_thread())
        field.progress(f"loading {field.model.name} in {format}", 0, 0)
        one = await load(thread, field.model, field.settings, format, context=0)
        ring = await stack.enter_async_context(
            through(field.settings, field.model, format, asked.nodes, field.progress)
        )
        contenders = [
            *_one_process(field, thread, one),
            *_swarm(field, ring),
            *await _llama(field, llama, file, stack, notes),
        ]
        if format == "bf16":
            contenders += await _language_pipes(field, stack, notes)
        return await in_turns(contenders, asked.rounds, field.progress, field.roof.look)


def _speed(
    name: str, run: Callable[[], Awaitable[float]], expected: Callable[[], Expected] | None = None
) -> Contender:
    return Contender(name, "tok/s", run, expected)


def _one_process(field: Field, thread: ComputeThread, one: OneProcess) -> list[Contender]:
    roof, format, many = field.roof, field.format, field.asked.sessions

    def timed(name: str, function: partial[float], expected: Callable[[], Expected]) -> Contender:
        return _speed(f"one/{format}/{name}", lambda: thread.run(function), expected)

    return [
        timed("decode/b1", partial(one.decode, 1), roof.decode(format, 1)),
        timed(f"decode/b{many}", partial(one.decode, many), roof.decode(format, many)),
        timed(f"prefill/{PREFILL}", partial(one.prefill, PREFILL), roof.prefill(format, PREFILL)),
    ]


def _swarm(field: Field, ring: SwarmDecoder) -> list[Contender]:
    many, prompt = field.asked.sessions, field.token_ids[0]
    name = f"swarm/{field.format}"
    return [
        _speed(f"{name}/decode/b1", partial(ring.decode, 1)),
        _speed(f"{name}/decode/b{many}", partial(ring.decode, many)),
        _speed(f"{name}/requests/{many}", partial(ring.requests, field.token_ids, REQUEST_TOKENS)),
        Contender(f"{name}/first-token", "s", partial(ring.first_token, prompt)),
    ]


async def _llama(
    field: Field, llama: LlamaCpp, file: Path, stack: AsyncExitStack, notes: list[str]
) -> list[Contender]:
    many, kind = field.asked.sessions, TYPES[field.format]
    contenders = [
        _speed(f"llama.cpp/{kind}/decode/b1", partial(llama.speed, file, generate=STEPS)),
        _speed(f"llama.cpp/{kind}/decode/b{many}", partial(llama.batched, file, many, DEPTH, STEPS)),
        _speed(f"llama.cpp/{kind}/prefill/{PREFILL}", partial(llama.speed, file, prompt=PREFILL)),
    ]
    if _has_vocabulary(field.model):
        port = await stack.enter_async_context(llama.server(file, many, field.folder))
        run = partial(requests_rate, port, list(field.token_ids), REQUEST_TOKENS)
        contenders.append(_speed(f"llama.cpp/{kind}/requests/{many}", run))
    else:
        notes.append("llama-server needs a vocabulary that this model has not: no requests to it")
    if llama.rpc_server is None:
        notes.append(f"{llama.folder} was built without GGML_RPC: its RPC servers were not measured")
    else:
        servers = await stack.enter_async_context(llama.rpc(field.asked.nodes, field.folder))
        run = partial(llama.speed, file, generate=STEPS, rpc=servers)
        contenders.append(_speed(f"llama.cpp-rpc/{kind}/decode/b1", run))
    return contenders


def _has_vocabulary(model: LocalModel) -> bool:
    return '"BPE"' in (model.path / "tokenizer.json").read_text("utf-8")


async def _language_pipes(field: Field, stack: AsyncExitStack, notes: list[str]) -> list[Contender]:
    asked = field.asked
    spans = split(field.model.shape.n_blocks, asked.nodes)
    try:
        pipes = await stack.enter_async_context(
            language_pipes(field.settings, field.model, spans, field.folder, field.progress)
        )
    except ShoalError as error:
        notes.append(f"language-pipes was not measured: {error.message}")
        return []
    prompt = field.prompts[0]

    async def decode() -> float:
        return (await pipes.ask(prompt, REQUEST_TOKENS)).decode_rate

    async def first_token() -> float:
        return (await pipes.ask(prompt, 3)).first_s

    together = partial(pipes.requests_rate, field.prompts, REQUEST_TOKENS)
    name = "language-pipes/bf16"
    return [
        forgiving(Contender(f"{name}/decode/b1", "tok/s", decode), notes),
        forgiving(Contender(f"{name}/first-token", "s", first_token), notes),
        forgiving(_speed(f"{name}/requests/{asked.sessions}", together), notes),
    ]


def forgiving(contender: Contender, notes: list[str]) -> Contender:
    """A contender whose failures do not end the run: they are noted, and after ``TRIES`` it is left out."""
    failures: list[str] = []

    async def run() -> float:
        if len(failures) == TRIES:
            return math.nan
        try:
            return await contender.run()
        except (ShoalError, ExceptionGroup) as error:
            known = as_shoal_error(error)
            if known is None:
                raise
            failures.append(known.message)
            notes.append(f"{contender.name} failed: {known.message}")
            return math.nan

    return replace(contender, run=run)


def _pairs(asked: PeersBench) -> dict[str, dict[str, str]]:
    """What each result is divided by: see :func:`shoal.bench.results.compared`."""
    many = asked.sessions
    found: dict[str, dict[str, str]] = {}
    for format in asked.formats:
        kind = TYPES[format]
        pipes = "language-pipes/bf16"
        for what in ("decode/b1", f"prefill/{PREFILL}"):
            found[f"one/{format}/{what}"] = {f"llama.cpp {kind}": f"llama.cpp/{kind}/{what}"}
        found[f"one/{format}/decode/b{many}"] = {
            f"llama.cpp {TYPES[other]}": f"llama.cpp/{TYPES[other]}/decode/b{many}" for other in asked.formats
        }
        found[f"swarm/{format}/decode/b1"] = {
            "one process": f"one/{format}/decode/b1",
            f"llama.cpp RPC {kind}": f"llama.cpp-rpc/{kind}/decode/b1",
            "language-pipes": f"{pipes}/decode/b1",
        }
        found[f"swarm/{format}/decode/b{many}"] = {"one process": f"one/{format}/decode/b{many}"}
        found[f"swarm/{format}/requests/{many}"] = {
            f"llama.cpp {kind}": f"llama.cpp/{kind}/requests/{many}",
            "language-pipes": f"{pipes}/requests/{many}",
        }
        found[f"swarm/{format}/first-token"] = {"language-pipes": f"{pipes}/first-token"}
    return found
