"""One question over HTTP and its answer, as JSON or as a stream of events."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import trio
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from shoal.client.generate import Delta
from shoal.client.scores import TokenScore
from shoal.errors import ShoalError
from shoal.gateway.access.keys import Caller
from shoal.gateway.access.limits import RequestLimiter
from shoal.gateway.access.usage import Usage
from shoal.gateway.answers import Answers
from shoal.gateway.api.request import GenerationRequest, affordable
from shoal.gateway.error_forms import error_response
from shoal.gateway.errors import AGAIN, MAYBE_AGAIN, status_of, told_to_callers
from shoal.gateway.page.requests import Record
from shoal.gateway.sse import EVENTS, EventStream, until_gone

NAMED = 32
"""Tools that a header names."""

log = logging.getLogger(__name__)


class Form(Protocol):
    """How one route of the API writes an answer down. Events are returned ready to be sent."""

    def take(self, choice: int, delta: Delta) -> list[bytes]:
        """More of a choice."""
        ...

    def take_scores(self, choice: int, scores: list[TokenScore | None]) -> list[bytes]:
        """How likely the prompt was, before anything of the choice."""
        ...

    def close(self) -> list[bytes]:
        """The last events of an answer that came to its end."""
        ...

    def fail(self, error: ShoalError) -> list[bytes]:
        """The last event of one that did not."""
        ...

    def whole(self) -> dict[str, Any]:
        """The same answer as one JSON object."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """Where requests are answered: what all of them share."""

    answers: Answers
    limits: RequestLimiter
    usage: Usage

    async def charge(self, record: Record, caller: Caller) -> None:
        """Charge the caller what a request has used since it was last charged for it."""
        owed = record.prompt_tokens + record.tokens - record.charged
        record.charged += owed  # before anything is waited for: it may be charged again meanwhile
        if caller.spend is not None:
            caller.spend(owed)
        await self.limits.charge(caller, owed)

    @asynccontextmanager
    async def recorded(self, record: Record, caller: Caller, route: str) -> AsyncGenerator[None]:
        """Answer a request in the block: it is counted, and its record ends as the block does.

        Args:
            route: by which its metrics know it.
        """
        answers = self.answers
        answers.metrics.requests.labels(route).inc()
        asked_again = False
        try:
            yield
            answers.records.end(record, "done")
        except ShoalError as error:
            log.info("%s failed: %s", record.id, error.message)
            answers.records.end(record, "failed", told_to_callers(error))
            answers.metrics.failed.labels(error.code).inc()
            asked_again = status_of(error) in AGAIN | MAYBE_AGAIN
            raise
        except BaseException as error:
            gone = isinstance(error, trio.Cancelled)
            why = None if gone else "a defect of Shoal"
            answers.records.end(record, "cancelled" if gone else "failed", why)
            asked_again = gone
            raise
        finally:
            # A batch tries its lines again by itself: for its key that is one request.
            requests = 0 if caller.background and asked_again else 1
            self.usage.count(caller.id, record.model, record.prompt_tokens, record.tokens, requests)
            answers.metrics.whole.labels(record.model).observe(trio.current_time() - record.arrived)
            await self.charge(record, caller)


OnEnd = Callable[[], Awaitable[None]]
"""Is called when an answer has come to its end well, before its last event is sent. Raises nothing."""
Prepare = Callable[[], Awaitable[Sequence[GenerationRequest]]]
"""Turns a body into prompts, whose choices are numbered through. Raises ShoalError where it cannot be."""


class Exchange:
    """An ASGI response. A client that goes away takes its answer with it: every hop is free at once.

    The caller was counted before its body was read: to turn that into prompts may take longer than an answer.

    Args:
        form: makes, for the record of this request and what it asks for, what writes the answer down.
        media_type: of what the form writes for a stream.
        ended: what else is to be done with the whole answer.
    """

    def __init__(
        self,
        desk: Desk,
        caller: Caller,
        prepare: Prepare,
        form: Callable[[Record, Sequence[GenerationRequest]], Form],
        *,
        prefix: str,
        stream: bool,
        media_type: str = EVENTS,
        ended: OnEnd | None = None,
    ) -> None:
        self._desk = desk
        self._ended = ended
        self._caller = caller
        self._prepare = prepare
        self._form = form
        self._prefix = prefix
        self._stream = stream
        self._media_type = media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_gone, receive, nursery.cancel_scope)
            try:
                asked = affordable(await self._prepare(), self._caller.most_tokens)
            except ShoalError as error:
                await error_response(error, scope)(scope, receive, send)
            else:
                await self._begun(asked).write(scope, receive, send)
            nursery.cancel_scope.cancel()

    def _begun(self, asked: Sequence[GenerationRequest]) -> _Answer:
        record = self._desk.answers.records.begin(self._prefix, asked[0].model.id, self._caller.id)
        form = self._form(record, asked)
        return _Answer(
            self._desk, self._caller, asked, record, form, self._stream, self._media_type, self._ended
        )


class _Answer:
    """What an exchange comes to, once it is known what is asked for."""

    def __init__(
        self,
        desk: Desk,
        caller: Caller,
        asked: Sequence[GenerationRequest],
        record: Record,
        form: Form,
        stream: bool,
        media_type: str,
        ended: OnEnd | None,
    ) -> None:
        self._desk = desk
        self._ended = ended
        self._caller = caller
        self._asked = asked
        self._record = record
        self._form = form
        self._stream = stream
        self._media_type = media_type
        self._headers = _headers(asked)
        for reason in (reason for one in asked for reason in one.why):
            log.info("%s is relaxed: %s", record.id, reason)

    async def write(self, scope: Scope, receive: Receive, send: Send) -> None:
        """All of it, or what went wrong."""
        events = EventStream(send, self._headers, self._media_type)
        try:
            async with self._desk.recorded(self._record, self._caller, scope["path"]):
                await self._give(events)
        except ShoalError as error:
            if not events.started:
                await error_response(error, scope)(scope, receive, send)
                return
            if trace := scope.get("trace"):
                trace.error = error.code  # the status that it has is that of an answer that began well
            await events.write(*self._form.fail(error))
        if self._stream:
            await events.end()
        else:
            await JSONResponse(self._form.whole(), headers=self._headers)(scope, receive, send)

    async def _give(self, events: EventStream) -> None:
        async with self._desk.limits.turn():
            first = 0
            for asked in self._asked:
                await self._desk.answers.give(
                    asked,
                    self._caller,
                    self._record,
                    partial(self._take, events, first),
                    partial(self._take_scores, events, first, asked.choices),
                )
                first += asked.choices
        if self._ended is not None:
            await self._ended()
        if self._stream:
            await events.write(*self._form.close())

    async def _take(self, events: EventStream, first: int, choice: int, delta: Delta) -> None:
        made = self._form.take(first + choice, delta)
        if self._stream:
            await events.write(*made)

    async def _take_scores(
        self, events: EventStream, first: int, choices: int, scores: list[TokenScore | None]
    ) -> None:
        for choice in range(choices):
            made = self._form.take_scores(first + choice, scores)
            if self._stream:
                await events.write(*made)


def _headers(asked: Sequence[GenerationRequest]) -> dict[str, str]:
    """Names whose schemas were relaxed, and how many more where they are many."""
    names = [name for one in asked for name in one.relaxed]
    more = [f"+{len(names) - NAMED}"] if len(names) > NAMED else []
    return {"x-shoal-relaxed": ", ".join([*names[:NAMED], *more])} if names else {}
