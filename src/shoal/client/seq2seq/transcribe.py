"""Speech in, text out: window by window, each heard by the encoder and written by the decoder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import trio

from shoal.client.generate import generate
from shoal.client.recommended import check_answer_options, sampling_for
from shoal.client.sampling import Sampler, Sampling
from shoal.client.seq2seq.sides import EncoderInput
from shoal.client.seq2seq.sound import RATE, Sound
from shoal.client.seq2seq.speech import OneOf, SpeechSettings, Suppression, Task, speech_settings
from shoal.client.session import Session
from shoal.errors import BadWeights, UsageError
from shoal.executor.arrays import Floats
from shoal.models.checkpoint.encoder_decoders import EncoderDecoder
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.types import Format

HOP = 160
"""Samples of a frame of log-mel features; the encoder makes one row of two."""

OpenDecoder = Callable[[EncoderInput, int], AbstractAsyncContextManager[Session]]
"""Opens a session whose encoder has heard a source, for so many tokens of KV."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What was said in one window."""

    start: float
    """Seconds from the beginning, at which the window begins."""
    end: float
    text: str
    token_ids: tuple[int, ...]
    """What was generated, the end token included."""


@dataclass(frozen=True, slots=True)
class Transcription:
    """A recording as text."""

    text: str
    language: str
    """Its code: as asked for, or as the model has heard it in the first window; empty where it knows one."""
    seconds: float
    """Of the recording."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcriber:
    """Writes one recording down.

    Args:
        language: its code; ``None`` to have the model hear which it is.
        follow: told of each session once it is open.
        heard: told of each window's text.
    """

    local: LocalModel
    settings: SpeechSettings
    codec: TextCodec
    rows: int
    """That the encoder makes of a window."""
    bins: int
    open_decoder: OpenDecoder
    language: str | None = None
    task: Task = "transcribe"
    sampling: Sampling = field(default_factory=Sampling)
    speculate: bool = True
    follow: Callable[[Session], None] = lambda _: None
    heard: Callable[[Segment], None] = lambda _: None

    async def write(self, sound: Sound) -> Transcription:
        """The whole of it.

        Raises:
            ShoalError: a session could not be opened, or failed.
        """
        language = self.language
        seconds = 2 * HOP * self.rows // RATE
        segments: list[Segment] = []
        for number, window in enumerate(sound.windows(seconds)):
            features = await trio.to_thread.run_sync(log_mel, window, self.bins, seconds)
            async with self.open_decoder(features, self.rows + self.settings.target) as session:
                self.follow(session)
                if language is None and self.settings.languages:
                    language = await self._language(session)
                segment = await self._segment(session, language, number * seconds, len(window) / RATE)
            segments.append(segment)
            self.heard(segment)
        text = " ".join(text for segment in segments if (text := segment.text.strip()))
        return Transcription(text, language or "", sound.seconds, tuple(segments))

    async def _language(self, session: Session) -> str:
        """Which language the model takes it for."""
        codes = {token: code for code, token in self.settings.languages.items()}
        sampler = Sampler(Sampling(), OneOf(codes))
        found = await session.advance(session.prompt_of(()), sampler)
        return codes[found.token]

    async def _segment(self, session: Session, language: str | None, start: int, length: float) -> Segment:
        asked = self.settings.prompt(language, self.task)
        most = min(self.settings.most, self.settings.target - len(asked))
        said: list[int] = []
        deltas = generate(
            session,
            [*session.ends.given, *asked],
            self.codec.detokenizer(),
            sampling=self.sampling,
            max_tokens=max(1, most),
            end_tokens=self.local.end_tokens,
            constraint=Suppression(self.settings.suppressed, self.settings.first_suppressed),
            speculate=self.speculate,
        )
        text = ""
        async with aclosing(deltas):
            async for delta in deltas:
                text += delta.text
                said += delta.token_ids
        return Segment(float(start), start + length, text, tuple(said))


class Speaks(Protocol):
    """What a transcriber needs of a :class:`shoal.client.swarm.Swarm`."""

    async def resolve(self, model: str) -> LocalModel: ...
    async def encoder_decoder(self, local: LocalModel) -> EncoderDecoder | None: ...
    async def codec(self, local: LocalModel, *, needed: bool = False) -> TextCodec | None: ...
    def session(
        self,
        model: str,
        *,
        tokens: int | None,
        format: Format | None,
        attested: bool | None,
        source: EncoderInput | None,
    ) -> AbstractAsyncContextManager[Session]: ...


async def open_transcriber(
    swarm: Speaks,
    model: str,
    *,
    language: str | None = None,
    task: Task = "transcribe",
    format: Format | None = None,
    attested: bool | None = None,
    follow: Callable[[Session], None] = lambda _: None,
    heard: Callable[[Segment], None] = lambda _: None,
    **sampling: Any,
) -> Transcriber:
    """What writes a recording down with a model. Nothing is sent yet.

    Args:
        attested: as ``Swarm.session`` has it, for the encoder as for the decoder.

    Raises:
        UsageError: the model hears nothing, or does not know the language.
        BadWeights: its files do not say how it is asked, or it has no tokenizer.
    """
    check_answer_options(1, sampling)
    if task not in ("transcribe", "translate"):
        raise UsageError(f"the task is transcribe or translate, not {task!r:.40}")
    local = await swarm.resolve(model)
    both = await swarm.encoder_decoder(local)
    if both is None or both.input != "audio":
        raise UsageError(
            f"{local.name} hears nothing: it takes text", check="choose a model of speech, such as Whisper"
        )
    settings = await trio.to_thread.run_sync(speech_settings, local, both)
    if language is not None or not settings.languages:
        settings.prompt(language, task)
    opening = partial(swarm.session, model, format=format, attested=attested)
    codec = await swarm.codec(local, needed=True)
    if codec is None:
        raise BadWeights(f"{local.name} has no tokenizer", check="fetch the model again")
    return Transcriber(
        local=local,
        settings=settings,
        codec=codec,
        rows=both.source,
        bins=both.bins,
        open_decoder=lambda source, tokens: opening(tokens=tokens, source=source),
        language=language,
        task=task,
        sampling=sampling_for(local.sampling, {"temperature": 0.0, **sampling}, 0.0),
        follow=follow,
        heard=heard,
    )


def log_mel(window: Floats, bins: int, seconds: int) -> Floats:
    """Whisper's features ``[bins, frames]`` of up to so many seconds; silence fills them up. Blocks."""
    from shoal.models.seam.seq2seq import WhisperFeatureExtractor  # noqa: PLC0415 - imports transformers

    extract = WhisperFeatureExtractor(feature_size=bins, sampling_rate=RATE, chunk_length=seconds)
    found = partial(extract, sampling_rate=RATE, return_tensors="np")(window)
    return found["input_features"][0]
