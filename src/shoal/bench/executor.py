"""The executor alone: decoding 1, 8 and 32 sessions, a prefill, and a long context, in every format."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial

import trio

from shoal.bench.models import described_model, held_formats, measured_model
from shoal.bench.one import DEPTH, STEPS, OneProcess, load_one
from shoal.bench.results import BenchReport, Contender, Expected, compared, in_turns
from shoal.bench.roof import Roof, find_roof
from shoal.config import Settings
from shoal.executor.pages import PAGE
from shoal.executor.thread import ComputeThread
from shoal.models.store.local_model import LocalModel
from shoal.progress import Progress
from shoal.types import Format

BATCHES = (1, 8, 32)
PREFILL = 512
SHORT_CONTEXT = 128
"""Tokens that one far into its context is compared with."""


async def measure_executor(
    settings: Settings, formats: Sequence[Format], rounds: int, progress: Progress, context: int = 0
) -> BenchReport:
    """Measure ``formats`` of a model in turns.

    Args:
        context: also decode a session that has so many tokens cached, and one of 128; 0: neither.

    Raises:
        ShoalError: the model cannot be had, or not be held in one of the formats.
    """
    settings, model = await trio.to_thread.run_sync(measured_model, settings, progress)
    formats = held_formats(model, formats)
    with torch_thread() as thread:
        roof = await find_roof(thread, settings, model, formats, progress)
        contenders: list[Contender] = []
        for format in formats:
            progress(f"loading {model.name} in {format}", 0, 0)
            one = await load(thread, model, settings, format, contexts(context))
            for far in contexts(context):
                await thread.run(partial(one.fill, far, progress))
            contenders += contenders_of(thread, one, format, roof)
            contenders += far_contenders(thread, one, format, roof, context)
        results = await in_turns(contenders, rounds, progress, roof.look)
    return BenchReport(
        f"The executor with {model.name}",
        roof.described(),
        tuple(compared(results, ratios(formats, context))),
        model=described_model(model),
    )


@contextmanager
def torch_thread() -> Generator[ComputeThread]:
    """A thread for everything that computes, so that all share one team of OpenMP's."""
    thread = ComputeThread("bench")
    try:
        yield thread
    finally:
        thread.close()


async def load(
    thread: ComputeThread, model: LocalModel, settings: Settings, format: Format, contexts: Sequence[int]
) -> OneProcess:
    """The whole model with room for the largest measurement. Raises as ``load_one``."""
    tokens = max(BATCHES) * (DEPTH + STEPS + PAGE) + PREFILL
    tokens += sum(far + STEPS + PAGE for far in contexts)
    return await load_one(thread, model, settings, format, kv=settings.kv, tokens=tokens)


def contenders_of(thread: ComputeThread, one: OneProcess, format: Format, roof: Roof) -> list[Contender]:
    """What is measured of one format; fp32 runs one session after another, so its batches say little."""

    def timed(name: str, function: partial[float], expected: Callable[[], Expected]) -> Contender:
        return Contender(f"executor/{format}/{name}", "tok/s", lambda: thread.run(function), expected)

    batches = BATCHES[:2] if format == "fp32" else BATCHES
    decoding = [
        timed(f"decode/b{batch}", partial(one.decode, batch), roof.decode(format, batch)) for batch in batches
    ]
    whole = timed(f"prefill/{PREFILL}", partial(one.prefill, PREFILL), roof.prefill(format, PREFILL))
    return [*decoding, whole]


def contexts(longest: int) -> tuple[int, ...]:
    """The contexts in which decoding is measured."""
    return (SHORT_CONTEXT, longest) if longest else ()


def far_contenders(
    thread: ComputeThread, one: OneProcess, format: Format, roof: Roof, context: int
) -> list[Contender]:
    """One session far into its context, and one that has just begun."""
    return [
        Contender(
            f"executor/{format}/context/{far}",
            "tok/s",
            partial(thread.run, partial(one.decode_after, far)),
            roof.decode(format, 1, far + STEPS // 2),
        )
        for far in contexts(context)
    ]


def ratios(formats: Sequence[Format], context: int = 0) -> dict[str, dict[str, str]]:
    """Batches against one session, a long context against a short one, and formats against bf16."""
    found: dict[str, dict[str, str]] = {}
    names = [f"decode/b{batch}" for batch in BATCHES] + [f"prefill/{PREFILL}"]
    names += [f"context/{far}" for far in contexts(context)]
    for format in formats:
        for name in names:
            others = found.setdefault(f"executor/{format}/{name}", {})
            if name.startswith("decode") and name != "decode/b1":
                others["b1"] = f"executor/{format}/decode/b1"
            if name.startswith("context") and name != f"context/{SHORT_CONTEXT}":
                others[f"{SHORT_CONTEXT} tokens"] = f"executor/{format}/context/{SHORT_CONTEXT}"
            if format != "bf16":
                others["bf16"] = f"executor/bf16/{name}"
    return found
