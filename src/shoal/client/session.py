"""A session: tokens in, logits out. The ends are here, the blocks are round the ring.

A session outlives its hops. When one is lost, :mod:`shoal.client.ring.recovery` finds a whole route, and the
step under way is sent again from its position: whoever waits for it sees a pause and no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from shoal.client.ring.hop import HopFailed
from shoal.client.ring.prefill import Piece, joined, outdated, piece_tokens, reusable
from shoal.client.ring.recovery import Recovery, Reroute, Way, recoverable
from shoal.client.ring.ring import IN_FLIGHT, Returned, Ring
from shoal.client.sampling import Sampler
from shoal.errors import CannotRollBack, PromptTooLong, ShoalError, UsageError
from shoal.executor.arrays import Floats, join
from shoal.executor.codecs import decode, encode
from shoal.executor.ends import EndsEngine
from shoal.executor.thread import TorchThread
from shoal.types import Codec, ModelShape, PeerId
from shoal.wire.messages import HopTime
from shoal.wire.session import Issued

Made = TypeVar("Made")

Survived = tuple[float, tuple[PeerId, ...], Way]
"""The pause in seconds, the hops that were lost, and how the session went on."""

RECOVERIES = 8
"""Losses in a row, without a result between them, after which a session gives up."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """The token that follows what was appended."""

    token: int
    times: tuple[HopTime, ...]
    """Where the step's time went, by hop."""


class Session:
    """A sequence of tokens whose KV lives on the hops of a route.

    ``step`` is for whoever wants logits; ``advance`` is what generation is made of. One task at a time.
    """

    def __init__(
        self,
        ring: Ring,
        ends: EndsEngine,
        thread: TorchThread,
        *,
        shape: ModelShape,
        prefill_chunk: int,
        recovery: Recovery,
    ) -> None:
        self.ring = ring
        self.shape = shape
        self._ends = ends
        self._thread = thread
        self._chunk = prefill_chunk
        self._pieces: list[Piece] = []
        self._scaling = ends.ends.rope_scaling
        self._ahead: _Ahead | None = None
        self._recovery = recovery
        self._heard = 0.0  # when the last result came
        self.token_ids: list[int] = []
        """The tokens whose KV the hops hold, in order."""
        self.reroutes: list[Reroute] = []
        """The losses that the session has survived."""

    @property
    def room(self) -> int:
        """Tokens that may still be added."""
        return self.ring.rules.tokens - len(self.token_ids)

    def reusable(self, prompt: Sequence[int]) -> int:
        """How many tokens of ``prompt`` are held as the prompt alone would have them; not its last one."""
        return reusable(self._pieces, self._scaling, prompt)

    async def step(
        self, token_ids: Sequence[int], *, chunk: int | None = None, sequence_length: int = 0
    ) -> Floats:
        """Append tokens; returns the logits ``[tokens, vocab]`` after each of them.

        A model whose rotary frequencies change with a sequence's length may need those before them computed
        again (:mod:`shoal.models.build.rope_scaling`); that is done on the way.

        Args:
            chunk: send them in pieces of this many tokens, several on their way at once; by default the
                session's ``prefill_chunk``; 0 cuts them so that every hop has work.
            sequence_length: tokens of the text that these are a part of, for a caller who appends it part by
                part and wants what it gives as a whole; by default it ends with them.

        Raises:
            UsageError: no tokens, or one outside of the vocabulary.
            PromptTooLong: they do not fit into the session. Nothing was sent.
            NoCoverage: a hop is lost, and nobody took its place in time.
            ShoalError: a step failed; the session is as long as it was before, or empty where all its tokens
                were being sent again.
        """
        returned = await self._append(token_ids, chunk or self._chunk, len(token_ids), sequence_length)
        return join([await self._head(r, _as_they_are) for r in returned if r.rows])

    async def advance(self, token_ids: Sequence[int], sampler: Sampler, *, more: bool = False) -> Advanced:
        """Append tokens, a prompt or one that was chosen, and choose the next. Raises as ``step``.

        Args:
            more: the chosen token will most likely be appended next. It is on its way round the ring before
                this returns; whatever else is done with the session instead takes it back.
        """
        returned = (await self._append(token_ids, self._chunk, 1))[-1]
        self._recovery.relieve(self.ring, cached=len(self.token_ids), remaining=self.room)
        goes_on = more and self.room and not self.ring.lost and not self._outdated(len(self.token_ids) + 1)
        following = self.ring.issue(1, 1) if goes_on else None
        try:
            token, self._ahead = await self._head(returned, partial(self._choose, sampler, following))
        except BaseException:
            self.roll_back(len(self.token_ids))
            raise
        return Advanced(token, returned.times)

    def roll_back(self, position: int) -> None:
        """Forget every token from ``position`` on.

        Raises:
            LocalProtocolError: the session is not that long.
        """
        self.ring.roll_back(position)
        self._trim(position)

    async def aclose(self) -> None:
        """Free the KV on every hop."""
        self._ends.close(self.ring.session)
        await self._recovery.routes.close(self.ring)

    async def _append(
        self, token_ids: Sequence[int], chunk: int, wanted: int, sequence_length: int = 0
    ) -> list[Returned]:
        """Send tokens round the ring; what comes back holds the last ``wanted`` rows."""
        self._check(token_ids)
        before = len(self.token_ids)
        sequence_length = max(sequence_length, before + len(token_ids))
        if self._outdated(sequence_length):
            token_ids, before = [*self.token_ids, *token_ids], 0
            self.roll_back(0)
        chunk = chunk or piece_tokens(self.ring.format, len(token_ids), len(self.ring.route))
        told = sequence_length if self._scaling else 0
        pieces = [Piece(list(token_ids[i : i + chunk]), told) for i in range(0, len(token_ids), chunk)]
        as_sent = (
            sequence_length == before + 1 and self._ahead is not None and [self._ahead.token] == [*token_ids]
        )
        if self._ahead is not None and self._ahead.sent and not as_sent:
            self.roll_back(before)
        self._heard = trio.current_time()
        try:
            return await self._run(pieces, wanted)
        except ShoalError as error:
            self._retreat(before)
            return await self._persist(error, pieces, wanted)
        except BaseException:
            self._retreat(before)
            raise

    def _outdated(self, length: int) -> bool:
        return outdated(self._pieces, self._scaling, length)

    async def _persist(self, error: ShoalError, pieces: list[Piece], wanted: int) -> list[Returned]:
        """Run ``pieces``, which came to nothing once; the route is made whole before each new attempt."""
        told, before = self._pieces.copy(), len(self.token_ids)
        owed: list[Piece] = []  # of what was told, what the hops must be sent again
        survived: list[Survived] = []
        for _ in range(RECOVERIES):
            owed = await self._made_whole(error, told, owed, survived)
            try:
                await self._run(owed, 0)
                owed = []
                returned = await self._run(pieces, wanted)
            except ShoalError as again:
                self._retreat(0 if owed else before)
                error = again
            except BaseException:
                self._retreat(0 if owed else before)
                raise
            else:
                for gap_s, lost, way in survived:
                    self.reroutes.append(Reroute(time.time(), gap_s, lost, way))
                    self._recovery.routes.survived(self.ring, time.time(), gap_s, lost, way)
                return returned
        raise _plain(error)

    async def _made_whole(
        self, error: ShoalError, told: list[Piece], owed: list[Piece], survived: list[Survived]
    ) -> list[Piece]:
        """Get rid of what caused ``error``; returns the pieces that the hops must be sent again first."""
        if isinstance(error, HopFailed) and isinstance(error.error, CannotRollBack) and self.token_ids:
            # A hop's cache cannot go back (a sliding window, a state): it is built again from the
            # tokens, in the same pieces, so that it holds the same bits. From the first on, every hop can.
            self._retreat(0)
            return told
        if not recoverable(error):
            raise _plain(error)
        old, position = self.ring, len(self.token_ids)
        refill = partial(self._refill, told)
        began = self._heard
        self.ring, lost, way = await self._recovery.recover(
            old, error, position=position, since=began, refill=refill
        )
        survived.append((trio.current_time() - began, lost, way))
        if self.ring is old:
            return owed
        self._ends.close(old.session)
        self._trim(0)
        return self._joined(told)

    async def _run(self, pieces: list[Piece], wanted: int) -> list[Returned]:
        """Send pieces ahead of their results, as many as may be in flight; wants the last rows back."""
        returned: list[Returned] = []
        left = sum(len(piece.token_ids) for piece in pieces)
        for piece in pieces:
            tokens = len(piece.token_ids)
            left -= tokens
            while self.ring.rules.in_flight + 1 > IN_FLIGHT:
                returned.append(await self.ring.receive())
            if self._ahead is None or not self._ahead.sent:
                codec, payload = await self._embedded(piece.token_ids)
                rows = min(max(wanted - left, 0), tokens)
                await self.ring.send(payload, codec, tokens, rows, piece.sequence_length)
            self._ahead = None
            self._pieces.append(piece)
            self.token_ids += piece.token_ids
        while len(returned) < len(pieces):
            returned.append(await self.ring.receive())
        self._heard = trio.current_time()
        return returned

    def _check(self, token_ids: Sequence[int]) -> None:
        if not token_ids:
            raise UsageError("the prompt is empty: a step needs at least one token")
        for token in token_ids:
            if not 0 <= token < self.shape.vocab_size:
                raise UsageError(
                    f"token {token} is outside of the vocabulary of {self.shape.vocab_size} tokens"
                )
        if len(token_ids) > self.room:
            raise PromptTooLong(
                f"{len(token_ids)} tokens do not fit: {self.room} of the session's {self.ring.rules.tokens} "
                "tokens are left",
                check="open the session with more tokens, or send fewer",
            )

    async def _embedded(self, piece: list[int]) -> tuple[Codec, bytes]:
        position = len(self.token_ids)
        if self._ahead is not None and self._ahead.fits(piece, position):
            return self._ahead.codec, self._ahead.payload
        codec = self.ring.codec(len(piece))
        return codec, await self._thread.run(lambda: self._encoded(piece, position, codec))

    async def _refill(self, told: list[Piece], ring: Ring, hops: int) -> None:
        """Send the first ``hops`` hops what the session's tokens are to them; nothing comes back."""
        position = 0
        for token_ids, sequence_length in self._joined(told):
            tokens = len(token_ids)
            codec = ring.codec(tokens)
            make = partial(self._encoded, token_ids, position, codec)
            await ring.fill(await self._thread.run(make), codec, position, tokens, hops, sequence_length)
            position += tokens

    def _joined(self, pieces: list[Piece]) -> list[Piece]:
        """Single tokens put together, where a row's bits do not depend on its company."""
        return joined(pieces) if self._ends.ends.sliced else pieces

    def _retreat(self, position: int) -> None:
        """Take the session back to ``position``, whatever became of the steps under way."""
        self.ring.roll_back(min(position, self.ring.rules.length))
        self._trim(position)

    async def _head(self, returned: Returned, then: Callable[[Floats], Made]) -> Made:
        """What ``then`` makes of the logits ``[rows, vocab]`` of what came back."""
        hidden = partial(decode, returned.payload, returned.codec, returned.rows, self.shape.hidden_size)
        return await self._ends.head(self.ring.session, returned.rows, hidden, then)

    def _encoded(self, piece: list[int], position: int, codec: Codec) -> bytes:
        return encode(self._ends.ends.embed(piece, position), codec)

    def _choose(self, sampler: Sampler, following: Issued | None, logits: Floats) -> tuple[int, _Ahead]:
        """The next token, and its embedding: sent at once, from this thread, when its step has a number."""
        token = sampler.choose(logits[-1], self.token_ids)
        position = len(self.token_ids)
        codec = self.ring.codec(1)
        payload = self._encoded([token], position, codec)
        if following is not None:
            send = self.ring.launch(following, payload, codec)
            if send is not None:
                self._ends.after(send)
        return token, _Ahead(token, position, codec, payload, following is not None)

    def _trim(self, position: int) -> None:
        del self.token_ids[position:]
        kept: list[Piece] = []
        left = position
        for token_ids, sequence_length in self._pieces:
            if left > 0:
                kept.append(Piece(token_ids[:left], sequence_length))
            left -= len(token_ids)
        self._pieces = kept
        self._ahead = None


def _plain(error: ShoalError) -> ShoalError:
    """The error itself, without which hop it came from."""
    return error.error if isinstance(error, HopFailed) else error


def _as_they_are(logits: Floats) -> Floats:
    return logits


@dataclass(frozen=True, slots=True)
class _Ahead:
    """The embedding of a token that will most likely be appended next."""

    token: int
    position: int
    codec: Codec
    payload: bytes
    sent: bool
    """Whether it is on its way already."""

    def fits(self, piece: list[int], position: int) -> bool:
        return piece == [self.token] and position == self.position
