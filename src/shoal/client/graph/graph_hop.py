"""One peer of a graph's route as its client sees it: a session on its segments, asked again and again."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError, ShoalError, from_code
from shoal.executor.arrays import Array
from shoal.executor.encrypted.parameters import PARAMETERS
from shoal.executor.encrypted.processes import EncryptedScores
from shoal.executor.graph.arrays import unpack_arrays
from shoal.models.graph.manifest import GraphManifest, misfit
from shoal.net.channel import Channel
from shoal.tasks import seconds_left
from shoal.types import Digest, Numerics, PeerId, SessionId, Span
from shoal.wire.inferring import ArraySpec, Infer, InferEncrypted, Inferred, InferredEncrypted
from shoal.wire.messages import Close, Failed, Message, Open, Opened, Refused

AT_ONCE = 4
"""Requests of one session at a time: what a node takes of one."""
SILENT_S = 3.0
"""A hop of which nothing was heard for so long while it computes is taken for lost."""
LOOK_EVERY_S = 0.5
UPLOAD_BYTES_S = 1e6
"""A request has so much longer, by its size."""


@dataclass(frozen=True, slots=True)
class SegmentsAnswer:
    """What some segments gave, and what it took there."""

    arrays: dict[int, Array]
    compute_ms: float
    waiting_ms: float


@dataclass(frozen=True, slots=True)
class EncryptedAnswer:
    """What a linear graph gave of encrypted rows, and what it took there."""

    scores: EncryptedScores
    compute_ms: float
    waiting_ms: float


class GraphHop:
    """A session with one peer. Messages for it come by :meth:`deliver`."""

    def __init__(
        self, channel: Channel, digest: Digest, manifest: GraphManifest, span: Span, numerics: Numerics
    ) -> None:
        self.session = SessionId(secrets.token_bytes(16))
        self.channel = channel
        self.span = span
        self.used = trio.current_time()
        """When it was last asked something."""
        self.lost: ShoalError | None = None
        """Why it is over."""
        self._numerics = numerics
        self._digest = digest
        self._manifest = manifest
        self._numbers = itertools.count(1)
        self._answers: dict[int, tuple[Inferred | InferredEncrypted, bytes] | ShoalError | None] = {}
        self._opened = False
        self._turn = trio.Semaphore(AT_ONCE)
        self._news = trio.Event()

    @property
    def peer(self) -> PeerId:
        return self.channel.peer

    @property
    def busy(self) -> bool:
        """Whether something is asked and not answered."""
        return bool(self._answers)

    async def open(self, within_s: float) -> None:
        """Ask to be let in.

        Raises:
            ShoalError: what the peer answered instead; it is gone, or did not answer in time.
        """
        numerics, span = self._numerics, self.span
        asked = Open(
            self.session,
            self._digest,
            numerics.format,
            span.start,
            span.end,
            tokens=1,
            hop=0,
            previous=None,
            next=None,
            numerics=str(numerics),
        )
        await self.channel.send(asked)
        await self._wait(lambda: self._opened, trio.current_time() + within_s)

    async def ask(self, arrays: Sequence[ArraySpec], payload: bytes, within_s: float) -> SegmentsAnswer:
        """What the segments make of these tensors.

        Raises:
            ChannelClosed, DeadlineExceeded: the peer is gone, is silent, or did not answer in time.
            RemoteProtocolError: it answered with what the segments do not give.
            ShoalError: what it answered instead.
        """
        message, made = await self._asked(
            lambda number: Infer(self.session, number, tuple(arrays)), payload, within_s
        )
        return self._checked(message, made)

    async def ask_encrypted(
        self, sizes: Sequence[int], payload: bytes, scores: int, within_s: float
    ) -> EncryptedAnswer:
        """What the graph, which is linear, makes of columns that are encrypted.

        Args:
            sizes: bytes of each ciphertext.
            scores: how many numbers it makes of a row.

        Raises:
            As :meth:`ask`.
        """
        message, made = await self._asked(
            lambda number: InferEncrypted(self.session, number, PARAMETERS, tuple(sizes)), payload, within_s
        )
        if not isinstance(message, InferredEncrypted) or len(message.sizes) != scores:
            raise RemoteProtocolError(f"{self.peer} gave something else than {scores} encrypted scores")
        found = EncryptedScores(message.sizes, made, message.exponent)
        return EncryptedAnswer(found, message.compute_us / 1e3, message.waiting_us / 1e3)

    async def _asked(
        self, question: Callable[[int], Message], payload: bytes, within_s: float
    ) -> tuple[Inferred | InferredEncrypted, bytes]:
        """What the peer answers to a question, which is given its number. Raises as :meth:`ask`."""
        async with self._turn:
            number = next(self._numbers)
            self._answers[number], self.used = None, trio.current_time()
            try:
                until = trio.current_time() + within_s + len(payload) / UPLOAD_BYTES_S
                await self.channel.send(question(number), payload)
                await self._wait(lambda: self._answers[number] is not None, until)
                answer = self._answers[number]
            finally:
                del self._answers[number]
                self.used = trio.current_time()
        if answer is None or isinstance(answer, ShoalError):
            raise answer or DeadlineExceeded("no answer")
        return answer

    def deliver(self, message: Message, payload: bytes) -> None:
        """Take what the peer says of this session."""
        match message:
            case Opened():
                self._opened = True
            case Refused():
                self.lost = from_code(
                    message.code, f"{self.peer}: {message.message}", retry_after_s=message.retry_after_s
                )
            case Failed(number=None):
                self.lost = from_code(message.code, f"{self.peer}: {message.message}")
            case Failed(number=int(number)) if number in self._answers:
                self._answers[number] = from_code(message.code, f"{self.peer}: {message.message}")
            case Inferred() | InferredEncrypted() if message.number in self._answers:
                self._answers[message.number] = (message, payload)
            case _:
                return  # an answer that nobody waits for any more
        self._wake()

    def lose(self, error: ShoalError) -> None:
        """The peer is gone."""
        self.lost = self.lost or error
        self._wake()

    def close(self) -> None:
        """Tell the peer that nothing more is asked."""
        self.lose(ChannelClosed("the session was closed"))
        with suppress(ChannelClosed):  # then it knows, or reads nothing
            self.channel.reply(Close(self.session))

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _wait(self, there: Callable[[], bool], until: float) -> None:
        while not there():
            if self.lost is not None:
                raise self.lost
            if self.channel.silent_s > SILENT_S:
                raise ChannelClosed(f"{self.peer}: nothing heard for {self.channel.silent_s:.1f} s")
            if trio.current_time() >= until:
                raise DeadlineExceeded(f"{self.peer} has not answered in time")
            with trio.move_on_after(min(LOOK_EVERY_S, seconds_left(until))):
                await self._news.wait()

    def _checked(self, message: Inferred | InferredEncrypted, payload: bytes) -> SegmentsAnswer:
        """Raises RemoteProtocolError: the peer gave what these segments cannot give."""
        wanted = self._manifest.gives(self.span)
        if isinstance(message, InferredEncrypted) or [array.value for array in message.arrays] != wanted:
            raise RemoteProtocolError(f"{self.peer} gave other values than segments {self.span} give")
        for array in message.arrays:
            if (why := misfit(self._manifest.values[array.value], array.dtype, array.shape)) is not None:
                raise RemoteProtocolError(f"{self.peer}: {why}")
        arrays = unpack_arrays(message.arrays, payload)
        return SegmentsAnswer(arrays, message.compute_us / 1e3, message.waiting_us / 1e3)
