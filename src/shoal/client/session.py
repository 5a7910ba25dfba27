"""A session: tokens in, logits out. The ends are here, the blocks are round the ring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from shoal.client.pieces import piece_tokens
from shoal.client.ring import IN_FLIGHT, Returned, Ring
from shoal.client.sampling import Sampler
from shoal.errors import CannotRollBack, PromptTooLong, UsageError
from shoal.executor.codecs import decode, encode
from shoal.executor.ends import EndsEngine
from shoal.executor.thread import TorchThread
from shoal.types import Codec, ModelShape
from shoal.wire.messages import HopTime
from shoal.wire.session import Issued

Made = TypeVar("Made")


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
    ) -> None:
        self.ring = ring
        self.shape = shape
        self._ends = ends
        self._thread = thread
        self._chunk = prefill_chunk
        self._pieces: list[list[int]] = []
        self._ahead: _Ahead | None = None
        self.token_ids: list[int] = []
        """The tokens whose KV the hops hold, in order."""

    @property
    def room(self) -> int:
        """Tokens that may still be added."""
        return self.ring.rules.tokens - len(self.token_ids)

    async def step(self, token_ids: Sequence[int], *, chunk: int | None = None) -> torch.Tensor:
        """Append tokens; returns the logits ``[tokens, vocab]`` after each of them.

        Args:
            chunk: send them in pieces of this many tokens, several on their way at once; by default the
                session's ``prefill_chunk``; 0 cuts them so that every hop has work.

        Raises:
            UsageError: no tokens, or one outside of the vocabulary.
            PromptTooLong: they do not fit into the session. Nothing was sent.
            ShoalError: a step failed; the session is as long as it was before.
        """
        returned = await self._append(token_ids, chunk or self._chunk, all_rows=True)
        return torch.cat([await self._head(r, _as_they_are) for r in returned])

    async def advance(self, token_ids: Sequence[int], sampler: Sampler, *, more: bool = False) -> Advanced:
        """Append tokens, a prompt or one that was chosen, and choose the next. Raises as ``step``.

        Args:
            more: the chosen token will most likely be appended next. It is on its way round the ring before
                this returns; whatever else is done with the session instead takes it back.
        """
        returned = (await self._append(token_ids, self._chunk, all_rows=False))[-1]
        following = self.ring.issue(1, 1) if more and self.room else None
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
        await self.ring.aclose()

    async def _append(self, token_ids: Sequence[int], chunk: int, *, all_rows: bool) -> list[Returned]:
        self._check(token_ids)
        before = len(self.token_ids)
        chunk = chunk or piece_tokens(self.ring.format, len(token_ids), len(self.ring.route))
        pieces = [list(token_ids[i : i + chunk]) for i in range(0, len(token_ids), chunk)]
        if self._ahead is not None and self._ahead.sent and pieces != [[self._ahead.token]]:
            self.roll_back(before)
        try:
            try:
                return await self._run(pieces, all_rows=all_rows)
            except CannotRollBack:
                # A hop's cache cannot go back (a sliding window, a state): it is built again from the
                # tokens, in the same pieces, so that it holds the same bits.
                self._trim(before)
                replay = self._pieces
                self.roll_back(0)
                await self._run(replay, all_rows=None)
                return await self._run(pieces, all_rows=all_rows)
        except BaseException:
            self.roll_back(min(before, len(self.token_ids), self.ring.rules.length))
            raise

    async def _run(self, pieces: list[list[int]], *, all_rows: bool | None) -> list[Returned]:
        """Send pieces ahead of their results, as many as may be in flight; ``None`` wants no rows back."""
        returned: list[Returned] = []
        for index, piece in enumerate(pieces):
            last = index == len(pieces) - 1
            wanted = len(piece) if all_rows else int(last and all_rows is not None)
            while self.ring.rules.in_flight + 1 > IN_FLIGHT:
                returned.append(await self.ring.receive())
            if self._ahead is None or not self._ahead.sent:
                codec, payload = await self._embedded(piece)
                await self.ring.send(payload, codec, len(piece), wanted)
            self._ahead = None
            self._pieces.append(piece)
            self.token_ids += piece
        while len(returned) < len(pieces):
            returned.append(await self.ring.receive())
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

    async def _head(self, returned: Returned, then: Callable[[torch.Tensor], Made]) -> Made:
        """What ``then`` makes of the logits ``[rows, vocab]`` of what came back."""
        hidden = partial(decode, returned.payload, returned.codec, returned.rows, self.shape.hidden_size)
        return await self._ends.head(self.ring.session, returned.rows, hidden, then)

    def _encoded(self, piece: list[int], position: int, codec: Codec) -> bytes:
        return encode(self._ends.ends.embed(piece, position), codec)

    def _choose(self, sampler: Sampler, following: Issued | None, logits: torch.Tensor) -> tuple[int, _Ahead]:
        """The next token, and its embedding: sent at once, from this thread, when its step has a number."""
        token = sampler.choose(logits[-1], self.token_ids)
        position = len(self.token_ids)
        codec = self.ring.codec(1)
        payload = self._encoded([token], position, codec)
        if following is not None:
            self.ring.launch(following, payload, codec)
        return token, _Ahead(token, position, codec, payload, following is not None)

    def _trim(self, position: int) -> None:
        del self.token_ids[position:]
        kept: list[list[int]] = []
        left = position
        for piece in self._pieces:
            if left > 0:
                kept.append(piece[:left])
            left -= len(piece)
        self._pieces = kept
        self._ahead = None


def _as_they_are(logits: torch.Tensor) -> torch.Tensor:
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
