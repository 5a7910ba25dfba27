"""Shoal beside llama.cpp and language-pipes: the same weights, machine and threads, in turns."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import trio

from shoal.bench.executor import PREFILL, load, torch_thread
from shoal.bench.kept.journal import Journal, code_digest, open_journal
from shoal.bench.models import bench_folder, described_model, measured_model
from shoal.bench.one import STEPS, OneProcess
from shoal.bench.peers.ggufs import write_gguf
from shoal.bench.peers.language_pipes import language_pipes
from shoal.bench.peers.llama_cpp import TYPES
from shoal.bench.peers.others import Others, find_others
from shoal.bench.results import (
    BenchReport,
    Contender,
    Expected,
    Measurement,
    Rounds,
    compared,
    describe_machine,
    in_turns,
    measured_by,
)
from shoal.bench.roof import Roof, find_roof
from shoal.bench.through import SwarmDecoder, through
from shoal.config import Settings
from shoal.errors import ShoalError, UnsupportedModel, UsageError, as_shoal_error
from shoal.executor.device.device import CPU
from shoal.executor.device.find import find_device
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
PIPES_ROUNDS = 2
"""Rounds in which language-pipes takes part: one takes it longer than all the others together."""
WORDS = 60
"""Words of a request's prompt. With 64 tokens, two whole chunks, language-pipes never answers."""
BUSY = 0.5
"""The load of each core from which on other programs disturb."""


@dataclass(frozen=True, slots=True)
class PeersBench:
    """What is compared."""

    formats: Sequence[Format]
    nodes: int
    sessions: int
    """Of the measurements with many."""
    rounds: int
    llama_cpp: Path | None
    """A folder of its library; ``None`` takes the one that was fetched."""
    contexts: Sequence[int]
    """Tokens that one session has cached while it decodes."""
    fetch: bool = False
    """Bring the other programs first."""
    again: bool = False
    """Begin anew where an earlier run was stopped."""


@dataclass(frozen=True, slots=True)
class Field:
    """All that measurements of one format need."""

    settings: Settings
    model: LocalModel
    asked: PeersBench
    others: Others
    format: Format
    folder: Path
    """For logs and configurations, gone afterwards."""
    roof: Roof
    progress: Progress
    prompts: tuple[str, ...]
    token_ids: tuple[list[int], ...]
    """The prompts as every program tokenizes them."""
    files: tuple[tuple[str, Path], ...]
    """GGUF files of the same weights, by llama.cpp's name of their type; none without llama.cpp."""


async def measure_peers(
    settings: Settings, asked: PeersBench, progress: Progress, tell: Callable[[str], None]
) -> BenchReport:
    """Measure each format of Shoal beside llama.cpp's nearest types, and bf16 beside language-pipes.

    What is measured is kept as it goes: the same call after one that was stopped goes on there.

    Args:
        tell: called with what a person should know before the figures are there.

    Raises:
        UsageError: a format that llama.cpp has none for; no other program is here.
        UnsupportedModel: the model is not a Llama with a tokenizer.
        ShoalError: the model or a program cannot be had.
    """
    if unknown := [format for format in asked.formats if format not in TYPES]:
        raise UsageError(
            f"llama.cpp is not compared in {unknown[0]}", check=f"choose one of: {', '.join(TYPES)}"
        )
    device = find_device(settings.device).device.name
    settings = replace(settings, device=device)
    others = await find_others(
        settings, asked.llama_cpp, gpu=device != CPU, fetch=asked.fetch, progress=progress
    )
    known = (*busy(psutil.getloadavg()[0], psutil.cpu_count() or 1), *others.missing)
    for line in known:
        tell(line)
    settings, model = await trio.to_thread.run_sync(measured_model, settings, progress)
    prompts = tuple(" ".join(f"w{7 * i + j}" for j in range(WORDS)) for i in range(asked.sessions))
    token_ids = tuple(await trio.to_thread.run_sync(_tokenized, model, prompts))
    journal = _journal(settings, asked, model, others)
    if journal.said:
        tell(journal.said)
    results: list[Measurement] = []
    notes: list[str] = []
    with torch_thread() as thread:
        roof = await find_roof(thread, settings, model, asked.formats, progress)
        for number, format in enumerate(asked.formats):
            with TemporaryDirectory(prefix="shoal-bench-") as folder:
                part = numbered(progress, f"part {number + 1} of {len(asked.formats)}: ")
                field = Field(
                    settings, model, asked, others, format, Path(folder), roof, part, prompts, token_ids, ()
                )
                results += await _kept(journal, field, notes)
    report = BenchReport(
        f"{model.name} beside llama.cpp and language-pipes",
        roof.described(),
        tuple(compared(results, _pairs(asked))),
        notes=(*known, *dict.fromkeys(notes)),
        model=described_model(model),
        versions=others.versions,
    )
    journal.end()
    return report


def busy(load: float, cores: int) -> list[str]:
    """A sentence on other work of the machine, if there is so much that figures would mislead.

    Args:
        load: programs that wanted to run in the last minute, on average.
    """
    if load < BUSY * cores:
        return []
    said = f"other programs use this machine (load {load:.1f} on {cores} cores)"
    why = "llama.cpp's threads wait for each other by spinning, so it looks many times slower than it is"
    return [f"{said}: {why}; measure again when they are over"]


def numbered(progress: Progress, part: str) -> Progress:
    """``progress`` with ``part`` before each label."""
    return lambda label, done, total: progress(part + label, done, total)


def _journal(settings: Settings, asked: PeersBench, model: LocalModel, others: Others) -> Journal:
    """The journal of this run: of the same figures of the same programs on the same machine."""
    run = {
        "model": model.digest,
        "asked": [list(asked.formats), asked.nodes, asked.sessions, asked.rounds, list(asked.contexts)],
        "machine": describe_machine(settings.threads) | {"device": settings.device},
        "conditions": measured_by(settings, asked.nodes),
        "others": dict(others.versions),
        "code": code_digest(),
    }
    return open_journal(bench_folder(settings) / "runs", run, anew=asked.again, now=datetime.now(UTC))


async def _kept(journal: Journal, field: Field, notes: list[str]) -> list[Measurement]:
    """The two parts of a format, each measured unless the journal has it."""
    found: list[Measurement] = []
    for name, measure in (("speeds", _speeds), ("contexts", _contexts)):
        unit = f"{field.format}/{name}"
        kept = journal.unit(unit)
        if kept.results is None:
            said: list[str] = []
            if not field.files:
                field = replace(field, files=await _files(field))
            journal.done(unit, await measure(field, journal.rounds(unit), said), said)
        found += kept.results or []
        notes += kept.notes
    return found


async def _files(field: Field) -> tuple[tuple[str, Path], ...]:
    """The model in each of llama.cpp's types that is compared with the format."""
    library, model = field.others.llama, field.model
    if library is None:
        return ()
    if field.format == "published":
        return ((TYPES["published"][0], _own_file(model)),)
    bf16 = bench_folder(field.settings) / f"{model.digest.removeprefix('sha256:')[:16]}.gguf"
    field.progress("writing a GGUF file of the same weights", 0, 0)
    await trio.to_thread.run_sync(write_gguf, model, bf16)
    found: list[tuple[str, Path]] = []
    for kind in TYPES[field.format]:
        field.progress(f"writing the model in {kind}", 0, 0)
        found.append((kind, await library.quantized(bf16, kind)))
    return tuple(found)


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


async def _speeds(field: Field, rounds: Rounds, notes: list[str]) -> list[Measurement]:
    """One session and many, a prefill and requests, in one process, through nodes, and by the others."""
    asked, format = field.asked, field.format
    async with AsyncExitStack() as stack:
        thread = stack.enter_context(torch_thread())
        field.progress(f"loading {field.model.name} in {format}", 0, 0)
        one = await load(thread, field.model, field.settings, format, ())
        ring = await stack.enter_async_context(
            through(field.settings, field.model, format, asked.nodes, field.progress)
        )
        contenders = [*_one_process(field, thread, one), *_swarm(field, ring)]
        for kind, file in field.files:
            contenders += await _llama(field, kind, file, stack)
        if field.files:
            contenders += await _rpc(field, *field.files[0], stack, notes)
        if format == "bf16" and field.others.pipes:
            contenders += await _language_pipes(field, stack, notes)
        return await in_turns(contenders, asked.rounds, field.progress, field.roof.look, rounds)


async def _contexts(field: Field, rounds: Rounds, notes: list[str]) -> list[Measurement]:
    """One session that has more and more tokens cached, in one process and by llama.cpp."""
    contexts = [far for far in field.asked.contexts if far <= field.model.shape.context]
    if not contexts:
        return []
    async with AsyncExitStack() as stack:
        thread = stack.enter_context(torch_thread())
        field.progress(f"loading {field.model.name} in {field.format}", 0, 0)
        one = await load(thread, field.model, field.settings, field.format, contexts)
        for far in contexts:
            await thread.run(partial(one.fill, far, field.progress))
        contenders = [
            _speed(
                f"one/{field.format}/context/{far}",
                partial(thread.run, partial(one.decode_after, far)),
                field.roof.decode(field.format, 1, far + STEPS // 2),
            )
            for far in contexts
        ]
        for kind, file in field.files:
            llama = await stack.enter_async_context(field.others.loaded(file))
            for far in contexts:
                await llama.fill(far, field.progress)
                contenders.append(_speed(f"llama.cpp/{kind}/context/{far}", partial(llama.decode_after, far)))
        return await in_turns(contenders, field.asked.rounds, field.progress, field.roof.look, rounds)


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


async def _llama(field: Field, kind: str, file: Path, stack: AsyncExitStack) -> list[Contender]:
    many = field.asked.sessions
    field.progress(f"loading the model in {kind}", 0, 0)
    llama = await stack.enter_async_context(field.others.loaded(file))
    return [
        _speed(f"llama.cpp/{kind}/decode/b1", partial(llama.decode, 1)),
        _speed(f"llama.cpp/{kind}/decode/b{many}", partial(llama.decode, many)),
        _speed(f"llama.cpp/{kind}/prefill/{PREFILL}", partial(llama.prefill, PREFILL)),
        _speed(f"llama.cpp/{kind}/requests/{many}", partial(llama.requests, field.token_ids, REQUEST_TOKENS)),
    ]


async def _rpc(
    field: Field, kind: str, file: Path, stack: AsyncExitStack, notes: list[str]
) -> list[Contender]:
    """As many RPC servers as Shoal has nodes."""
    library, many = field.others.rpc, field.asked.sessions
    if library is None:
        return []
    field.progress(f"starting {field.asked.nodes} RPC servers of llama.cpp", 0, 0)
    try:
        servers = await stack.enter_async_context(library.servers(field.asked.nodes, field.folder))
        llama = await stack.enter_async_context(library.loaded(file, rpc=servers))
    except ShoalError as error:
        notes.append(f"llama.cpp over RPC was not measured in {kind}: {error.message}")
        return []
    return [
        forgiving(_speed(f"llama.cpp-rpc/{kind}/decode/b1", partial(llama.decode, 1)), notes),
        forgiving(_speed(f"llama.cpp-rpc/{kind}/decode/b{many}", partial(llama.decode, many)), notes),
    ]


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
    contenders = [
        Contender(f"{name}/decode/b1", "tok/s", decode),
        Contender(f"{name}/first-token", "s", first_token),
        _speed(f"{name}/requests/{asked.sessions}", together),
    ]
    return [forgiving(replace(one, most_rounds=PIPES_ROUNDS), notes) for one in contenders]


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
    every = [kind for format in asked.formats for kind in TYPES[format]]
    pipes = "language-pipes/bf16"
    found: dict[str, dict[str, str]] = {}

    def beside(kinds: Sequence[str], what: str) -> dict[str, str]:
        return {f"llama.cpp {kind}": f"llama.cpp/{kind}/{what}" for kind in kinds}

    for format in asked.formats:
        one, swarm, kinds = f"one/{format}", f"swarm/{format}", TYPES[format]
        for what in ("decode/b1", f"prefill/{PREFILL}", *(f"context/{far}" for far in asked.contexts)):
            found[f"{one}/{what}"] = beside(kinds, what)
        for far in asked.contexts[1:]:
            found[f"{one}/context/{far}"][f"{asked.contexts[0]} tokens"] = (
                f"{one}/context/{asked.contexts[0]}"
            )
        found[f"{one}/decode/b{many}"] = {"b1": f"{one}/decode/b1"} | beside(every, f"decode/b{many}")
        for what in ("decode/b1", f"decode/b{many}"):
            found[f"{swarm}/{what}"] = {
                "one process": f"{one}/{what}",
                f"llama.cpp RPC {kinds[0]}": f"llama.cpp-rpc/{kinds[0]}/{what}",
                "language-pipes": f"{pipes}/{what}",
            }
        requests = f"requests/{many}"
        found[f"{swarm}/{requests}"] = beside(kinds, requests) | {"language-pipes": f"{pipes}/{requests}"}
        found[f"{swarm}/first-token"] = {"language-pipes": f"{pipes}/first-token"}
    return found
