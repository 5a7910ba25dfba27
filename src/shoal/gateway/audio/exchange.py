"""One recording over HTTP and its text: counted, limited and measured as answers are."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import trio
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from shoal.client.seq2seq.sound import Sound, read_recording
from shoal.client.seq2seq.speech import Task
from shoal.client.seq2seq.transcribe import Segment, Transcriber, Transcription, open_transcriber
from shoal.client.session import Session
from shoal.client.swarm import Swarm
from shoal.errors import ShoalError
from shoal.gateway.access.keys import Caller
from shoal.gateway.error_forms import error_response
from shoal.gateway.exchange import Desk
from shoal.gateway.models import Servable
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.audio import AudioRequest
from shoal.gateway.sse import until_gone

PREFIX = "audio-"
MAX_SECONDS = 1800
"""Of sound: 25 MiB of a telephone's are almost two hours, and what is heard costs the hops by its length."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What is to be written down."""

    model: Servable
    body: AudioRequest
    task: Task
    data: bytes
    """The file."""


class AudioExchange:
    """An ASGI response. A client that goes away takes its session with it: every hop is free at once.

    Args:
        held: closed once the recording is no longer needed.
    """

    def __init__(
        self, desk: Desk, swarm: Swarm, caller: Caller, recording: Recording, held: ExitStack
    ) -> None:
        self._desk = desk
        self._swarm = swarm
        self._caller = caller
        self._recording = recording
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_gone, receive, nursery.cancel_scope)
                try:
                    response = await self._answer(scope["path"], nursery)
                except ShoalError as error:
                    response = error_response(error, scope)
                await response(scope, receive, send)
                nursery.cancel_scope.cancel()

    async def _answer(self, path: str, charges: trio.Nursery) -> Response:
        asked = self._recording
        sound = await trio.to_thread.run_sync(read_recording, asked.data, MAX_SECONDS)
        transcriber = await open_transcriber(
            self._swarm,
            asked.model.id,
            language=asked.body.language,
            task=asked.task,
            temperature=asked.body.temperature,
            attested=self._caller.attested or None,
        )
        record = self._desk.answers.records.begin(PREFIX, asked.model.id, self._caller.id)
        async with self._desk.recorded(record, self._caller, path):
            written = await self._write(transcriber, sound, record, charges)
            return _written(asked, written, record)

    async def _write(
        self, transcriber: Transcriber, sound: Sound, record: Record, charges: trio.Nursery
    ) -> Transcription:
        model, answers = self._recording.model.id, self._desk.answers
        sessions: list[Session] = []

        def follow(session: Session) -> None:
            sessions.append(session)
            record.follow(session)
            # What the encoder made of a window is to the hops what a prompt of so many tokens is. It has been
            # computed by now, whatever becomes of the window.
            record.prompt_tokens += transcriber.rows
            answers.metrics.prompt_tokens.labels(model).inc(transcriber.rows)
            charges.start_soon(self._desk.charge, record, self._caller)

        def heard(segment: Segment) -> None:
            answers.metrics.generation_tokens.labels(model).inc(len(segment.token_ids))
            for _ in segment.token_ids:
                answers.records.token(record)
            session = sessions.pop()
            record.follow(session)
            answers.metrics.reroutes.labels(model).inc(len(session.reroutes))
            charges.start_soon(self._desk.charge, record, self._caller)

        async with self._desk.limits.turn():
            return await replace(transcriber, follow=follow, heard=heard).write(sound)


def _written(asked: Recording, written: Transcription, record: Record) -> Response:
    """As OpenAI writes it down. ``verbose_json`` has no segments: when each word was said nobody knows."""
    if asked.body.response_format == "text":
        return PlainTextResponse(written.text + "\n")
    told: dict[str, Any] = {
        "text": written.text,
        "usage": {"type": "duration", "seconds": math.ceil(written.seconds)},
        "shoal": record.told(),
    }
    if asked.body.response_format == "verbose_json":
        told |= {"task": asked.task, "language": written.language, "duration": written.seconds}
    return JSONResponse(told)
