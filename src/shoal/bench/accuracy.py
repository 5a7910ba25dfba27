"""What formats, codecs and int8 KV cost in accuracy: the perplexity of a fixed English text.

Perplexity is the exponential of the mean negative log likelihood of a token given those before it, here in
windows that each begin anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources

import numpy as np
import trio

from shoal.bench.models import described_model, held_formats, measured_model
from shoal.bench.one import OneProcess, load_one
from shoal.bench.results import BenchReport, Measurement, describe_machine
from shoal.config import Settings
from shoal.errors import UnsupportedModel
from shoal.executor.thread import ComputeThread
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.progress import Progress
from shoal.types import Codec, Format, Kv

TEXT = "alice.txt"
WINDOW = 1024
"""Tokens of a window."""
TOKENS = 20 * WINDOW
"""Tokens that are measured."""
HOPS = 3
"""Spans that the blocks are cut into, so that hidden states cross the wire between them."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of running the model."""

    name: str
    format: Format
    kv: Kv = "auto"
    wire: Codec = "float32"


EXACT = Variant("fp32", "fp32")
WAYS = (
    EXACT,
    Variant("fp32+wire-bfloat16", "fp32", wire="bfloat16"),
    Variant("fp32+wire-int8", "fp32", wire="int8"),
    Variant("fp32+wire-int6", "fp32", wire="int6"),
    Variant("bf16", "bf16"),
    Variant("bf16+kv-int8", "bf16", kv="int8"),
    Variant("published", "published"),
    Variant("int8", "int8"),
    Variant("w8a8", "w8a8"),
    Variant("int4", "int4"),
    Variant("int8+kv-int8+wire-int8", "int8", kv="int8", wire="int8"),
)


def shipped_text() -> str:
    """The text; see ``data/README.md`` for what it is."""
    return resources.files("shoal.bench").joinpath("data", TEXT).read_text("utf-8")


def windows_of(tokens: Sequence[int], window: int) -> list[list[int]]:
    """``tokens`` in whole windows; what is left over is not used."""
    return [list(tokens[i : i + window]) for i in range(0, len(tokens) - window + 1, window)]


async def measure_accuracy(settings: Settings, formats: Sequence[Format], progress: Progress) -> BenchReport:
    """Measure the perplexity of each way whose format is asked for, against float32.

    Raises:
        UnsupportedModel: the model has no tokenizer, or too small a context.
        ShoalError: the model cannot be had.
    """
    settings, model = await trio.to_thread.run_sync(measured_model, settings, progress)
    windows = _windows(model)
    formats = held_formats(model, formats)
    ways = [way for way in WAYS if way is EXACT or way.format in formats]
    found: dict[str, float] = {}
    for place, way in enumerate(ways):
        found[way.name] = await _perplexity(
            settings, model, way, windows, partial(_report, progress, way, place, len(ways))
        )
    results = [
        Measurement(
            f"accuracy/{name}",
            value,
            "perplexity",
            value,
            value,
            vs={"fp32": value / found[EXACT.name]},
            rounds=(value,),
        )
        for name, value in found.items()
    ]
    note = f"{len(windows) * WINDOW} tokens of {TEXT} in windows of {WINDOW}; lower is better"
    return BenchReport(
        f"Accuracy of {model.name}",
        describe_machine(settings.threads),
        tuple(results),
        notes=(note,),
        model=described_model(model),
    )


def _windows(model: LocalModel) -> list[list[int]]:
    codec = TextCodec.load(model.path)
    if model.shape.context < WINDOW:
        raise UnsupportedModel(f"{model.name} has a context of {model.shape.context} tokens, not {WINDOW}")
    return windows_of(codec.encode(shipped_text())[:TOKENS], WINDOW)


def _report(progress: Progress, way: Variant, place: int, of: int, part: float) -> None:
    progress(f"measuring {way.name}", round(1000 * (place + part)), 1000 * of)


async def _perplexity(
    settings: Settings,
    model: LocalModel,
    way: Variant,
    windows: Sequence[Sequence[int]],
    report: partial[None],
) -> float:
    thread = ComputeThread("bench")
    try:
        report(0.0)
        one = await load_one(thread, model, settings, way.format, kv=way.kv, tokens=(HOPS + 1) * WINDOW)
        total, count = 0.0, 0
        for place, window in enumerate(windows):
            losses = await thread.run(partial(_losses, one, window, way.wire))
            total, count = total + losses[0], count + losses[1]
            report((place + 1) / len(windows))
        return math.exp(total / count)
    finally:
        thread.close()


def _losses(one: OneProcess, window: Sequence[int], wire: Codec) -> tuple[float, int]:
    losses = one.losses(window, wire, HOPS)
    return float(losses.sum(dtype=np.float64)), len(losses)
