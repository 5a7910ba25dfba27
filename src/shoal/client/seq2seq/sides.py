"""Which side of a model with an encoder and a decoder a session goes over, and what it begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from shoal.client.ends import Given, SessionEnds
from shoal.client.ring.hop import RouteHop
from shoal.client.seq2seq.encoder_pass import EncoderPass
from shoal.client.session import Session
from shoal.errors import PromptTooLong, UsageError
from shoal.executor.arrays import Floats
from shoal.executor.ends import EndsEngine, SourceRunner
from shoal.executor.thread import ComputeThread
from shoal.models.checkpoint.encoder_decoders import EncoderDecoder
from shoal.models.store.local_model import LocalModel
from shoal.types import CarrierName, Span

EncoderInput: TypeAlias = "Sequence[int] | Floats"
"""What an encoder takes: the tokens of a text, or log-mel features ``[bins, frames]`` of sound."""


@dataclass(frozen=True, slots=True)
class Side:
    """Some blocks of a model in a row, and what a session over them begins with, if not with tokens."""

    span: Span
    read: EncoderInput | None = None
    """What an encoder is to read or hear."""
    given: Given | None = None
    """What a decoder's encoder gave."""
    token: int = 0
    """With which a decoder begins."""
    encoder: EncoderPass | None = None
    """How what a decoder is given came about."""

    async def ends(self, engine: EndsEngine, thread: ComputeThread, width: int) -> SessionEnds:
        """The client's part of a session.

        Raises:
            UsageError: the encoder takes no such tokens or features.
        """
        if self.read is None:
            return SessionEnds(engine, thread, width, self.given)
        encoder, runner = engine.encoder, engine.ends.encoder
        if encoder is None or runner is None:
            raise UsageError("the model has no encoder before a decoder", check="leave the source out")
        rows = await thread.run(partial(_before_blocks, runner, self.read))
        return SessionEnds(encoder, thread, width, Given(rows, self.token))


OpenSide = Callable[[Side, int], AbstractAsyncContextManager[Session]]
"""Opens a session over a side of a model, for so many tokens."""


async def encode_source(
    local: LocalModel, both: EncoderDecoder, source: EncoderInput, open_side: OpenSide
) -> Side:
    """The decoder's side, once the encoder has taken its source: a whole one, over a session of its own.

    Raises:
        UsageError: it takes no such source.
        PromptTooLong: a text is too long.
        ShoalError: the encoder's session could not be opened, or failed.
    """
    if local.soft_prompt is not None:
        raise UsageError(
            f"{local.name} has a soft prompt, and none stands before an encoder and a decoder",
            check="ask the model without the name behind it",
        )
    rows = check_source(local, both, source)
    async with open_side(Side(both.encoder, source, token=both.start), rows) as session:
        hidden = await session.encode(session.ends.given, rows)
        passed = _passed(session)
    return Side(both.decoder, given=Given(hidden, both.start), token=both.start, encoder=passed)


def all_hops(session: Session) -> list[tuple[RouteHop, CarrierName]]:
    """Everybody who computes for a session now, and how each is reached; the hops of an encoder first."""
    encoder, ring = session.encoder, session.ring
    before = zip(encoder.route, encoder.carriers, strict=True) if encoder is not None else ()
    return [*before, *zip(ring.route, ring.carriers, strict=False)]


def check_source(local: LocalModel, both: EncoderDecoder, source: EncoderInput) -> int:
    """How many rows the encoder makes of its source.

    Raises:
        UsageError, PromptTooLong: as :func:`encode_source`.
    """
    if (both.input == "audio") != isinstance(source, np.ndarray):
        takes = "sound" if both.input == "audio" else "the tokens of a text"
        raise UsageError(f"the encoder of {local.name} takes {takes}", check="give it that")
    rows = source_rows(both, source)
    if not rows:
        raise UsageError("the prompt is empty: an encoder needs at least one token")
    if rows + 2 > both.context:
        raise PromptTooLong(
            f"the prompt has {rows} tokens, and {local.name} takes {both.context} with the answer",
            check="shorten the prompt: it is never cut for you",
        )
    return rows


def source_rows(both: EncoderDecoder, source: EncoderInput) -> int:
    """How many rows an encoder makes of a source that it takes."""
    return both.source if both.input == "audio" else len(source)


def hears_only(local: LocalModel) -> UsageError:
    """What is told of a model that listens and is asked to answer a text."""
    return UsageError(
        f"{local.name} writes down what it hears, and answers no text",
        check="give it a recording, or choose another model",
        next_command=f"shoal transcribe FILE.wav --model {local.name}",
    )


def _passed(session: Session) -> EncoderPass:
    times = {time.hop: (time.compute_us / 1e3, time.waiting_us / 1e3) for time in session.encode_times}
    hops = all_hops(session)
    return EncoderPass(
        route=tuple(hop for hop, _ in hops),
        carriers=tuple(carrier for _, carrier in hops),
        reroutes=tuple(session.reroutes),
        times_ms=tuple(times.get(index, (0.0, 0.0)) for index in range(len(hops))),
    )


def _before_blocks(encoder: SourceRunner, source: EncoderInput) -> Floats:
    return encoder.hear(source) if isinstance(source, np.ndarray) else encoder.embed(source, 0)
