"""What one session has on its client: the embedding, the head, and the blocks that the client runs itself.

The ordinary client has none of the blocks. With ``private_ends`` it runs the first and the last ones of a
model, as a hop would (:mod:`shoal.executor.engine`), and peers run only what is between. What it has sent to
the first of them it keeps: when a hop is lost, it is sent again and not computed again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, TypeVar

import numpy as np
import outcome

from shoal.client.ring.results import Returned
from shoal.client.vision.pictures import SeenPicture, SessionPictures
from shoal.errors import Busy, ShoalError
from shoal.executor.arrays import Floats, empty
from shoal.executor.codecs import decode, encode, split_rows
from shoal.executor.ends import EndsEngine
from shoal.executor.engine import Engine, StepOutput
from shoal.executor.kernels.decode_steps import AwaitedResult
from shoal.executor.schedule import MERGED_ROWS, merges_rows
from shoal.executor.thread import ComputeThread, ThreadReply
from shoal.models.build.rope_scaling import RopeScaling
from shoal.trust.rows import row_hashes
from shoal.types import Codec, Exactness, SessionId, Span

_Made = TypeVar("_Made")

Embedded = bytes | ShoalError
"""Hidden states for the first hop, encoded, or why there are none."""
After = Callable[[Callable[[], None]], None]
"""Has a function run once all that ran together have their results."""

STEPS_TIMED = 64
FIRST_ROWS = 64
"""Tokens for which a session begins to keep what it sends; twice as many each time that it needs more."""


@dataclass(frozen=True, slots=True)
class Given:
    """Rows that a session begins with, where no tokens have them: what an encoder heard, or gave."""

    rows: Floats
    """``[n, width]``"""
    token: int
    """Stands for each of them among the session's tokens; a decoder begins with it."""
    counted: bool = False
    """Whether the tokens behind them are counted from the first of them, as of a soft prompt."""


@dataclass(frozen=True, slots=True)
class OwnSpan:
    """Blocks that the client runs itself."""

    span: Span
    bytes: int
    """Of their weights in memory."""
    kv_bytes: float
    """Of KV for each token of a session."""
    compute_ms: float
    """Of a decode step, in the middle of the last ones; 0 before the first."""

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "start": self.span.start,
            "end": self.span.end,
            "weight_bytes": self.bytes,
            "kv_bytes_per_token": round(self.kv_bytes),
            "compute_ms": round(self.compute_ms, 3),
        }


class SessionEnds:
    """The client's part of one session.

    Args:
        thread: on which all of it is computed.
        width: elements of a token's hidden states.
        given: what the session begins with, if that is not made of tokens.
    """

    def __init__(
        self, ends: EndsEngine, thread: ComputeThread, width: int, given: Given | None = None
    ) -> None:
        self._given = given
        self._ends = ends
        self._thread = thread
        self._width = width
        self._key = SessionId(os.urandom(16))  # its rings come and go
        self._sent = SentRows(width)
        self._held = 0
        self.pictures = SessionPictures()
        """What stands among its tokens beside words."""
        self._times = {engine: deque[int](maxlen=STEPS_TIMED) for engine in self._engines}

    @property
    def rope_scaling(self) -> RopeScaling:
        """How the model's rotary frequencies follow from a sequence's length."""
        return self._ends.ends.rope_scaling

    @property
    def stateless(self) -> bool:
        """Whether the model takes in a whole text at once, of which nothing is kept."""
        return self._ends.ends.stateless

    @property
    def given(self) -> tuple[int, ...]:
        """The tokens that stand for what the session begins with."""
        return () if self._given is None else (self._given.token,) * len(self._given.rows)

    @property
    def virtual(self) -> tuple[int, ...]:
        """Those of a soft prompt, which a prompt stands behind."""
        return self.given if self._given is not None and self._given.counted else ()

    def prompt_of(self, prompt: Sequence[int]) -> Sequence[int]:
        """What a session begins with: the prompt, behind a soft prompt if there is one; or, where an encoder
        has read it, what that gave and a first token."""
        given = self.given
        if not given:
            return prompt
        return (*given, *prompt) if self.virtual else (*given, given[0])

    @property
    def hops_have_all(self) -> bool:
        """Whether all of a session's KV is at hops, and follows from its tokens, as far as they are words."""
        return not (self.own or self.given or self.stateless)

    @property
    def merges(self) -> bool:
        """Whether tokens that were sent one by one may be sent again, up to ``MERGED_ROWS`` in a step."""
        return self._ends.ends.sliced and all(engine.capabilities.batch for engine in self._engines)

    def step_rows(self, bits: Exactness) -> int:
        """Tokens of a step up to which each gives the same bits as in a step of its own.

        Args:
            bits: on what those of the hops depend.
        """
        own: list[Exactness] = [self._ends.ends.bits, *(engine.runner.bits for engine in self._engines)]
        return MERGED_ROWS if all(map(merges_rows, [bits, *own])) else 1

    @property
    def rolls_back(self) -> bool:
        """Whether the KV here can return to any earlier position."""
        return all(engine.capabilities.roll_back for engine in self._engines)

    @property
    def own(self) -> tuple[OwnSpan, ...]:
        """The blocks that run here, in their order."""
        return tuple(
            OwnSpan(
                engine.runner.span,
                engine.runner.tensor_bytes,
                engine.runner.kv_bytes,
                median(times.copy()) / 1e3 if times else 0.0,
            )
            for engine, times in self._times.items()
        )

    async def open(self, tokens: int) -> None:
        """Reserve KV for a session of ``tokens`` tokens.

        Raises:
            Busy: there is no room for it.
        """
        try:
            for engine in self._engines:
                await engine.open(self._key)
                engine.grow(self._key, tokens)
        except Busy as error:
            raise Busy(
                f"the client's own blocks have {error.message}",
                tokens_free=error.tokens_free,
                retry_after_s=5.0,
                check="ask for fewer tokens, or raise the client's kv_tokens and memory",
            ) from error

    def close(self) -> None:
        """Free it. Closing twice is no error."""
        self._ends.close(self._key)
        for engine in self._engines:
            engine.close(self._key)
        self._sent = SentRows(self._width)  # an answer is kept for longer than its session

    def rows_back(self, position: int, tokens: int, wanted: int) -> int:
        """How many rows of a step are to come back, where the caller wants its last ``wanted``.

        All of them, where the last blocks are here and do not have them in their KV.
        """
        if self._ends.last is None:
            return wanted
        return tokens if wanted or position + tokens > self._held else 0

    async def embed(
        self, token_ids: Sequence[int], position: int, codec: Codec, sequence_length: int
    ) -> bytes:
        """What the first hop receives for tokens ``[position, position + n)``, encoded.

        Raises:
            UsageError: no tokens, or one outside of the vocabulary.
            PromptTooLong: positions beyond the model's context.
            CannotRollBack: the first blocks are here, and their KV cannot return to ``position``.
            ShoalError: they failed.
        """
        reply = ThreadReply[bytes]()

        def done(made: Embedded, after: After) -> None:
            reply.give(outcome.Error(made) if isinstance(made, ShoalError) else outcome.Value(made))

        def begin() -> None:
            try:
                self.embed_then(token_ids, position, codec, sequence_length, done)
            except BaseException as error:  # noqa: BLE001  a model's own code; raised where it is waited for
                reply.give(outcome.Error(error))

        self._thread.post(begin)
        return await reply.wait()

    def embed_then(
        self,
        token_ids: Sequence[int],
        position: int,
        codec: Codec,
        sequence_length: int,
        done: Callable[[Embedded, After], None],
    ) -> None:
        """The same on the thread that computes, for a caller who does not wait. ``done`` runs there, too."""
        first, kept = self._ends.first, self._sent.find(token_ids, position, sequence_length)
        try:
            rows = self._embedded(token_ids, position) if kept is None else kept
            if first is not None and kept is None:
                sent = partial(self._through_first, first, token_ids, position, codec, sequence_length, done)
                self._sent.cut(position)
                n, payload = len(token_ids), encode(rows, "float32")
                mutual = self.pictures.stretches(position, position + n)
                to = ("float32", sent, sequence_length, mutual, self.pictures.grids(position + n))
                first.submit(self._key, position, payload, "float32", n, n, *to)
                return
            made: Embedded = encode(rows, codec)
        except ShoalError as error:
            made = error
        done(made, self._ends.after)

    def _through_first(
        self,
        first: Engine,
        token_ids: Sequence[int],
        position: int,
        codec: Codec,
        sequence_length: int,
        done: Callable[[Embedded, After], None],
        out: StepOutput | ShoalError,
    ) -> None:
        if isinstance(out, ShoalError):
            done(out, first.after)
            return
        self._note(first, len(token_ids), out)
        try:
            rows = decode(out.payload, "float32", len(token_ids), self._width)
            self._sent.keep(token_ids, position, sequence_length, rows)
            made: Embedded = encode(rows, codec)
        except ShoalError as error:
            made = error
        done(made, first.after)

    async def sent_hashes(self, pieces: Sequence[tuple[Sequence[int], int]], codec: Codec) -> bytes:
        """The hashes of the rows that the first hop was sent for a session's tokens, from the first on.

        No block is computed again: empty where blocks are here, and what they made was not kept.

        Args:
            pieces: tokens with the sequence length that the hops were told with them.
        """

        def look() -> bytes:
            found = self._sent_again(pieces)
            return b"".join(row_hashes(encode(r, codec), codec, len(r), self._width) for r in found)

        return await self._thread.run(look)

    async def sent_rows(self, pieces: Sequence[tuple[Sequence[int], int]], codec: Codec) -> list[bytes]:
        """The rows themselves, each as if it had been sent alone. As :meth:`sent_hashes`."""

        def look() -> list[bytes]:
            found = self._sent_again(pieces)
            return [row for r in found for row in split_rows(encode(r, codec), codec, len(r), self._width)]

        return await self._thread.run(look)

    def _sent_again(self, pieces: Sequence[tuple[Sequence[int], int]]) -> list[Floats]:
        """What each of these pieces was to the first hop; nothing where that was not kept."""
        found, position = list[Floats](), 0
        for token_ids, told in pieces:
            rows = self._sent.find(token_ids, position, told) if self._ends.first else None
            if rows is None and self._ends.first:
                return []
            found.append(self._embedded(token_ids, position) if rows is None else rows)
            position += len(token_ids)
        return found

    async def finish(self, returned: Returned, wanted: int) -> Returned:
        """What a step brought back, with the last ``wanted`` of its rows as the last block of all gives them.

        Raises:
            CannotRollBack: the last blocks are here, and their KV cannot return to the step's position.
            ShoalError: they failed.
        """
        last = self._ends.last
        if last is None or not returned.rows:
            return returned
        reply = ThreadReply[StepOutput]()

        def done(out: StepOutput | ShoalError) -> None:
            reply.give(outcome.Error(out) if isinstance(out, ShoalError) else outcome.Value(out))

        last.submit(
            self._key,
            returned.step.position,
            returned.payload,
            returned.codec,
            returned.rows,
            wanted,
            "float32",
            done,
            returned.step.sequence_length,
            returned.step.mutual,
            returned.step.grids,
        )
        out = await reply.wait()
        self._note(last, returned.rows, out)
        self._held = returned.step.position + returned.rows
        return replace(returned, payload=out.payload, codec="float32", rows=wanted)

    async def head(self, finished: Returned, then: Callable[[Floats], _Made]) -> _Made:
        """What ``then``, on the thread that computes, makes of the logits ``[rows, vocab]`` of such rows.

        Raises:
            ShoalError: what it raises.
        """
        hidden = partial(decode, finished.payload, finished.codec, finished.rows, self._width)
        return await self._ends.head(self._key, finished.rows, hidden, then)

    def prepare(self, ring: SessionId, result: AwaitedResult | None) -> None:
        """Let a result of the session, ``ring`` to its hops, be answered where it comes, if it can be."""
        if result is not None and not self._engines:
            self._ends.prepare(self._key, ring, result)

    def hold(self) -> None:
        """The next result goes the ordinary way."""
        self._ends.hold(self._key)

    async def last_hidden(self, finished: Returned) -> Floats:
        """The model's last hidden states ``[rows, width]``, after its last norm, of such rows.

        Raises:
            ShoalError: what is behind the blocks failed.
        """
        return await self._ends.last_hidden(
            partial(decode, finished.payload, finished.codec, finished.rows, self._width)
        )

    def roll_back(self, position: int) -> None:
        """The session goes on from ``position``."""
        self._held = min(self._held, position)

    def show(self, seen: Sequence[SeenPicture]) -> None:
        """These pictures stand among the session's tokens, which goes on before any that did not before."""
        changed = self.pictures.same_until([one.placed for one in seen])
        self.pictures.show(seen)
        if changed is not None:
            self._thread.post(partial(self._sent.cut, changed))  # the same tokens are other rows now

    def lose(self) -> None:
        """The KV here is good for nothing more: the session begins again."""
        self._held = 0
        self._thread.post(partial(self._sent.cut, 0))

    @property
    def _engines(self) -> list[Engine]:
        return [engine for engine in (self._ends.first, self._ends.last) if engine is not None]

    def _embedded(self, token_ids: Sequence[int], position: int) -> Floats:
        """What the first block receives. What was given is one piece; tokens are counted from its end."""
        given = 0 if self._given is None else len(self._given.rows)
        if self._given is not None and position < given:
            rows = self._given.rows[position : position + len(token_ids)]
            if len(rows) == len(token_ids):
                return rows
            # Where single tokens were joined, a soft prompt of one row is among them.
            return np.concatenate([rows, self._embedded(token_ids[len(rows) :], given)])
        before = 0 if self.virtual else given
        return self.pictures.put(self._ends.ends.embed(token_ids, position - before), position)

    def _note(self, engine: Engine, rows: int, out: StepOutput) -> None:
        if rows == 1:
            self._times[engine].append(out.compute_us)


class SentRows:
    """What a session's own first blocks gave for its tokens ``[0, n)``: as exact as it came out of them.

    As many bytes for each token as its hidden states take in float32, for no more tokens than KV was reserved
    for. Only touched by the thread that computes.
    """

    def __init__(self, width: int) -> None:
        self._rows = empty((0, width))
        self._token_ids: list[int] = []
        self._sequence_lengths: list[int] = []

    def find(self, token_ids: Sequence[int], position: int, sequence_length: int) -> Floats | None:
        """What was sent for these tokens there, ``[n, width]``, if they were."""
        end = position + len(token_ids)
        if not token_ids or self._token_ids[position:end] != list(token_ids):
            return None
        alike = self._sequence_lengths[position:end] == [sequence_length] * len(token_ids)
        return self._rows[position:end] if alike else None

    def cut(self, position: int) -> None:
        """Forget what was sent from ``position`` on: what comes there now may follow other tokens."""
        del self._token_ids[position:]
        del self._sequence_lengths[position:]

    def keep(self, token_ids: Sequence[int], position: int, sequence_length: int, rows: Floats) -> None:
        """These were sent; ``rows`` is ``[n, width]``."""
        if position != len(self._token_ids):
            return  # of a step that was given up: what is before it is not there any more
        end = position + len(token_ids)
        if end > len(self._rows):
            more = empty((max(end, 2 * len(self._rows), FIRST_ROWS), rows.shape[1]))
            more[:position] = self._rows[:position]
            self._rows = more
        np.copyto(self._rows[position:end], rows)
        self._token_ids += token_ids
        self._sequence_lengths += [sequence_length] * len(token_ids)
