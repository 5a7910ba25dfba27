"""The same swarm for callers that are not on trio: calls go through a portal to the thread that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal

from shoal.client.answer import Answer
from shoal.client.embeddings import Embeddings, Texts
from shoal.client.generate import Delta
from shoal.client.graph.input_files import GraphInput
from shoal.client.ring.results import NextToken
from shoal.client.rollouts.prompts import RolloutPrompts
from shoal.client.rollouts.run import RolloutsProgress
from shoal.client.sampling import Sampler
from shoal.client.seq2seq.sides import EncoderInput
from shoal.client.seq2seq.sound import Sound
from shoal.client.seq2seq.transcribe import Transcription
from shoal.client.session import Session
from shoal.client.swarm import Swarm
from shoal.executor.arrays import Array, Floats
from shoal.swarm.announcement import Announcement
from shoal.types import Format, ModelShape
from shoal.wire.cache_names import Beginning, CacheKey

_Result = TypeVar("_Result")


async def _next(deltas: AsyncIterator[Delta]) -> Delta | None:
    return await anext(deltas, None)


class SyncAnswer:
    """Iterate over it for the deltas; ``answer`` holds all else that is known."""

    def __init__(self, portal: BlockingPortal, answer: Answer) -> None:
        self._portal = portal
        self.answer = answer

    def __iter__(self) -> Iterator[Delta]:
        deltas = aiter(self.answer)
        try:
            while (delta := self._portal.call(_next, deltas)) is not None:
                yield delta
        finally:
            self._portal.call(self.answer.aclose)


class AsyncioAnswer:
    """The same for an asyncio caller. Cancelling the caller frees the session on every hop."""

    def __init__(self, portal: BlockingPortal, answer: Answer) -> None:
        self._portal = portal
        self.answer = answer

    async def __aiter__(self) -> AsyncIterator[Delta]:
        deltas = aiter(self.answer)
        try:
            while (delta := await _on(self._portal, partial(_next, deltas))) is not None:
                yield delta
        finally:
            await _on(self._portal, self.answer.aclose)


class SyncSession:
    """A session whose calls wait."""

    def __init__(self, portal: BlockingPortal, session: Session) -> None:
        self._portal = portal
        self.session = session

    def step(self, token_ids: Sequence[int], *, chunk: int | None = None) -> Floats:
        """See :meth:`shoal.client.session.Session.step`."""
        return self._portal.call(partial(self.session.step, token_ids, chunk=chunk))

    def advance(self, token_ids: Sequence[int], sampler: Sampler) -> NextToken:
        """See :meth:`shoal.client.session.Session.advance`."""
        return self._portal.call(self.session.advance, token_ids, sampler)

    def roll_back(self, position: int) -> None:
        """See :meth:`shoal.client.session.Session.roll_back`."""
        self._portal.call(self.session.roll_back, position)

    def keep(self, keys: Sequence[CacheKey]) -> None:
        """See :meth:`shoal.client.session.Session.keep`."""
        self._portal.call(self.session.keep, keys)

    @property
    def token_ids(self) -> list[int]:
        """The tokens whose KV the hops hold, in order."""
        return self.session.token_ids


class AsyncioSession:
    """A session for an asyncio caller; made and closed by ``async with``."""

    def __init__(self, portal: BlockingPortal, opening: AbstractContextManager[Session]) -> None:
        self._portal = portal
        self._opening = opening
        self._session: Session | None = None

    async def __aenter__(self) -> AsyncioSession:
        self._session = await asyncio.to_thread(self._opening.__enter__)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._opening.__exit__, kind, error, trace)

    @property
    def session(self) -> Session:
        """The session itself, once it is open."""
        if self._session is None:
            raise RuntimeError("enter the session first: async with swarm.session(...)")
        return self._session

    async def step(self, token_ids: Sequence[int], *, chunk: int | None = None) -> Floats:
        """See :meth:`shoal.client.session.Session.step`."""
        return await _on(self._portal, partial(self.session.step, token_ids, chunk=chunk))

    async def advance(self, token_ids: Sequence[int], sampler: Sampler) -> NextToken:
        """See :meth:`shoal.client.session.Session.advance`."""
        return await _on(self._portal, partial(self.session.advance, token_ids, sampler))

    async def roll_back(self, position: int) -> None:
        """See :meth:`shoal.client.session.Session.roll_back`."""
        await _call_on(self._portal, partial(self.session.roll_back, position))

    async def keep(self, keys: Sequence[CacheKey]) -> None:
        """See :meth:`shoal.client.session.Session.keep`."""
        await _on(self._portal, partial(self.session.keep, keys))


class SyncSwarm:
    """A swarm whose calls wait for what they return."""

    def __init__(self, portal: BlockingPortal, swarm: Swarm) -> None:
        self.portal = portal
        self.swarm = swarm

    def announcements(self) -> list[Announcement]:
        """Every peer that serves something now."""
        return self.portal.call(self.swarm.announcements)

    def models(self) -> list[ModelShape]:
        """Every model of which some span is served."""
        return self.portal.call(self.swarm.models)

    @contextmanager
    def session(
        self,
        model: str,
        *,
        tokens: int | None = None,
        format: Format | None = None,
        attested: bool | None = None,
        source: EncoderInput | None = None,
        begins: Beginning | None = None,
        background: bool = False,
    ) -> Generator[SyncSession]:
        """See :meth:`shoal.client.swarm.Swarm.session`."""
        opening = self.swarm.session(
            model,
            tokens=tokens,
            format=format,
            attested=attested,
            source=source,
            begins=begins,
            background=background,
        )
        with self.portal.wrap_async_context_manager(opening) as session:
            yield SyncSession(self.portal, session)

    def run(self, graph: str, inputs: Mapping[str, GraphInput], **options: Any) -> dict[str, Array]:
        """See :meth:`shoal.client.swarm.Swarm.run`."""
        return self.portal.call(partial(self.swarm.run, graph, inputs, **options))

    def generate(self, model: str, prompt: str | Sequence[int] | None = None, **options: Any) -> SyncAnswer:
        """See :meth:`shoal.client.swarm.Swarm.generate`."""
        return SyncAnswer(
            self.portal, self.portal.call(partial(self.swarm.generate, model, prompt, **options))
        )

    def embed(self, model: str, texts: Texts, **options: Any) -> Embeddings:
        """See :meth:`shoal.client.swarm.Swarm.embed`."""
        return self.portal.call(partial(self.swarm.embed, model, texts, **options))

    def rollouts(self, model: str, prompts: RolloutPrompts, out: Path, **options: Any) -> RolloutsProgress:
        """See :meth:`shoal.client.swarm.Swarm.rollouts`."""
        return self.portal.call(partial(self.swarm.rollouts, model, prompts, out, **options))

    def transcribe(self, model: str, recording: bytes | Sound, **options: Any) -> Transcription:
        """See :meth:`shoal.client.swarm.Swarm.transcribe`."""
        return self.portal.call(partial(self.swarm.transcribe, model, recording, **options))


class AsyncioSwarm:
    """A swarm for asyncio callers. Nothing here blocks their loop."""

    def __init__(self, portal: BlockingPortal, swarm: Swarm) -> None:
        self.portal = portal
        self.swarm = swarm

    async def announcements(self) -> list[Announcement]:
        """Every peer that serves something now."""
        return await _call_on(self.portal, self.swarm.announcements)

    async def models(self) -> list[ModelShape]:
        """Every model of which some span is served."""
        return await _call_on(self.portal, self.swarm.models)

    def session(
        self,
        model: str,
        *,
        tokens: int | None = None,
        format: Format | None = None,
        attested: bool | None = None,
        source: EncoderInput | None = None,
        begins: Beginning | None = None,
        background: bool = False,
    ) -> AsyncioSession:
        """See :meth:`shoal.client.swarm.Swarm.session`."""
        opening = self.swarm.session(
            model,
            tokens=tokens,
            format=format,
            attested=attested,
            source=source,
            begins=begins,
            background=background,
        )
        return AsyncioSession(self.portal, self.portal.wrap_async_context_manager(opening))

    async def run(self, graph: str, inputs: Mapping[str, GraphInput], **options: Any) -> dict[str, Array]:
        """See :meth:`shoal.client.swarm.Swarm.run`."""
        return await _on(self.portal, partial(self.swarm.run, graph, inputs, **options))

    def generate(
        self, model: str, prompt: str | Sequence[int] | None = None, **options: Any
    ) -> AsyncioAnswer:
        """See :meth:`shoal.client.swarm.Swarm.generate`."""
        return AsyncioAnswer(self.portal, self.swarm.generate(model, prompt, **options))

    async def embed(self, model: str, texts: Texts, **options: Any) -> Embeddings:
        """See :meth:`shoal.client.swarm.Swarm.embed`."""
        return await _on(self.portal, partial(self.swarm.embed, model, texts, **options))

    async def rollouts(
        self, model: str, prompts: RolloutPrompts, out: Path, **options: Any
    ) -> RolloutsProgress:
        """See :meth:`shoal.client.swarm.Swarm.rollouts`."""
        return await _on(self.portal, partial(self.swarm.rollouts, model, prompts, out, **options))

    async def transcribe(self, model: str, recording: bytes | Sound, **options: Any) -> Transcription:
        """See :meth:`shoal.client.swarm.Swarm.transcribe`."""
        return await _on(self.portal, partial(self.swarm.transcribe, model, recording, **options))


async def _on(portal: BlockingPortal, call: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run ``call`` on the swarm's thread without blocking this loop; cancelled with its caller."""
    future: Future[_Result] = portal.start_task_soon(call)
    return await asyncio.wrap_future(future)


async def _call_on(portal: BlockingPortal, call: Callable[[], _Result]) -> _Result:
    """The same for what does not wait: the swarm's objects are touched on its thread alone."""

    async def run() -> _Result:
        return call()

    return await _on(portal, run)
