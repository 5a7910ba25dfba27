"""A session: tokens in, logits out. The ends are here (:mod:`shoal.client.ends`), the blocks round the ring.

What has been sent, what is owed and what may be taken back, :mod:`shoal.client.transcript` knows. A session
outlives its hops. When one is lost, :mod:`shoal.client.ring.recovery` finds a whole route, and the step under
way is sent again from its position: whoever waits for it sees a pause and no more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from functools import partial

import trio

from shoal.client.ends import After, Embedded, SessionEnds
from shoal.client.ring.hop import HopFailed
from shoal.client.ring.prefill import grow, piece_tokens
from shoal.client.ring.recovery import Recovery, RouteChange, recoverable
from shoal.client.ring.results import NextToken, Returned
from shoal.client.ring.ring import IN_FLIGHT, Ring
from shoal.client.sampling import Sampler, choose_all
from shoal.client.seq2seq.encoder_pass import EncoderPass
from shoal.client.transcript import Piece, Transcript, join_singles
from shoal.client.vision.pictures import PlacedPicture
from shoal.errors import CannotRollBack, PromptTooLong, ShoalError, UsageError
from shoal.executor.arrays import Floats, join
from shoal.types import Codec, ModelShape
from shoal.wire.cache_names import CacheKey
from shoal.wire.messages import HopTime
from shoal.wire.session import Issued

RECOVERIES = 8
"""Losses in a row, without a result between them, that a session takes however long they take; from then on
it goes on for as long as a route may take to be found again, and pauses between them."""
LOSSES_PAUSE_S = 0.25


class Session:
    """A sequence of tokens whose KV lives on the hops of a route. One task at a time.

    ``step`` is for whoever wants logits; ``advance`` is what generation is made of. With ``send_ahead`` and
    ``verify`` tokens go round the ring before they are known for certain."""

    def __init__(
        self,
        ring: Ring,
        ends: SessionEnds,
        *,
        shape: ModelShape,
        prefill_chunk: int,
        recovery: Recovery,
        encoder: EncoderPass | None = None,
    ) -> None:
        self.ring = ring
        self.shape = shape
        self.ends = ends
        self._chunk = prefill_chunk
        self._transcript = Transcript(ends.rope_scaling, len(ends.given))
        self._recovery = recovery
        self.taken_up = 0
        """Tokens that it began with of an earlier one: what hops made of them was not seen here."""
        self._heard = 0.0  # when the last result came
        self._plain = False  # whether what follows a result is the likeliest token and nothing else
        self.encoder = encoder
        """How what it begins with came through an encoder, where it did."""
        self.reroutes: list[RouteChange] = list(encoder.reroutes) if encoder else []
        """The losses that it has survived, after those on the way through an encoder."""
        self.encode_times: Sequence[HopTime] = ()

    @property
    def token_ids(self) -> list[int]:
        """The tokens whose KV the hops hold, in order."""
        return self._transcript.token_ids

    def prompt_of(self, prompt: Sequence[int]) -> Sequence[int]:
        """What to begin with. As :meth:`SessionEnds.prompt_of`."""
        return self.ends.prompt_of(prompt)

    @property
    def room(self) -> int:
        """Tokens that may still be added."""
        return self.ring.rules.tokens - self._transcript.length

    @property
    def ahead(self) -> tuple[int, ...]:
        """Tokens that are on their way and no part of the session yet."""
        return self._transcript.ahead

    @property
    def in_flight(self) -> int:
        """Steps on their way."""
        return self.ring.rules.in_flight

    @property
    def answered(self) -> bool:
        """Whether the oldest step on its way is back, or has come to nothing: nobody need wait for it."""
        return self.ring.answered

    @property
    def step_rows(self) -> int:
        """Tokens of a step up to which each gives the same bits as in a step of its own."""
        return self.ends.step_rows(self.ring.numerics.bits)

    @property
    def takes_back(self) -> bool:
        """Whether tokens that were sent can be taken back at no more cost than that of sending others."""
        return self.ring.rolls_back and self.ends.rolls_back and not self.ends.rope_scaling

    def take_up(self, token_ids: Sequence[int]) -> None:
        """Begin with tokens of which the hops have kept the KV."""
        self._transcript.take_up(token_ids)
        self.taken_up = len(token_ids)

    async def keep(self, keys: Sequence[CacheKey]) -> None:
        """As :meth:`Places.keep`, where hops can go back and have all of the session's KV."""
        # Names are of tokens alone: where pictures stand among them, they say too little.
        whole = self.takes_back and self.ends.hops_have_all and not self.ends.pictures.count
        await self.ring.places.keep(keys if whole else ())

    def reusable(self, prompt: Sequence[int], pictures: Sequence[PlacedPicture] = ()) -> int:
        """How many tokens of ``prompt``, with these pictures among them, are held as the prompt alone would
        have them; not its last one."""
        found, other = self._transcript.reusable(prompt), self.ends.pictures.same_until(pictures)
        return found if other is None else min(found, other)

    async def step(
        self, token_ids: Sequence[int], *, chunk: int | None = None, sequence_length: int = 0
    ) -> Floats:
        """Append tokens; returns the logits ``[tokens, vocab]`` after each of them but what an encoder gave.

        A model whose rotary frequencies change with a sequence's length may need those before them computed
        again (:mod:`shoal.models.build.rope_scaling`); that is done on the way.

        Args:
            chunk: send them in pieces of this many tokens, several on their way at once; by default the
                session's ``prefill_chunk``; 0 cuts them so that every hop has work.
            sequence_length: tokens of the text that these are a part of, for a caller who appends it part by
                part and wants what it gives as a whole; by default it ends with them.

        Raises:
            UsageError: no tokens, or one outside of the vocabulary, or ``chunk`` is negative.
            PromptTooLong: they do not fit into the session. Nothing was sent.
            NoCoverage: a hop is lost, and nobody took its place in time.
            ShoalError: a step failed; the session is as long as it was before, or empty where all its tokens
                were being sent again.
        """
        chunk = self._chunk if chunk is None else chunk
        given = max(0, len(self.ends.given) - self._transcript.length)
        returned = await self._append(token_ids, chunk, max(1, len(token_ids) - given), sequence_length)
        return join([await self.ends.head(step, lambda logits: logits) for step in returned])

    async def encode(self, token_ids: Sequence[int], wanted: int) -> Floats:
        """The last hidden states ``[wanted, hidden_size]`` of a whole text's last tokens, after the norm.

        Whatever the session held before is forgotten. Raises as ``step``.
        """
        self.roll_back(0)
        returned = await self._append(token_ids, self._chunk, wanted)
        self.encode_times = returned[-1].times
        return join([await self.ends.last_hidden(step) for step in returned])

    async def advance(self, token_ids: Sequence[int], sampler: Sampler, *, more: bool = False) -> NextToken:
        """Append tokens, a prompt or one that was chosen, and choose the next. Raises as ``step``.

        Args:
            more: the chosen token will most likely be appended next. It is on its way round the ring before
                this returns; whatever else is done with the session instead takes it back.
        """
        returned = (await self._append(token_ids, self._chunk, 1, plain=more and sampler.plain))[-1]
        if returned.token is not None:
            sampler.note(returned.token)
            self._transcript.sent_ahead([returned.token])
            return NextToken(returned.token, returned, None, False)
        length = self._transcript.length
        self._recovery.relieve(self.ring, cached=length, remaining=self.room)
        goes_on = more and self.room and not self.ring.lost and not self._transcript.outdated(length + 1)
        # Numbered here, as the rules belong to the loop; the thread that chooses the token sends the step.
        grids = self.ends.pictures.grids(length + 1)
        following = self.ring.issue(1, 1, grids=grids) if goes_on else None
        try:
            token = await self.ends.head(returned, partial(self._choose, sampler, following))
        except BaseException:
            # The step ahead may have been sent, or be about to be: a roll-back gives it up either way.
            self.roll_back(length)
            raise
        if following is not None:
            self._transcript.sent_ahead([token])
        return NextToken(token, returned, sampler.score, sampler.complete)

    async def send_ahead(self, token_ids: Sequence[int]) -> None:
        """Send tokens in one step, after those that are on their way: for :meth:`verify`.

        Args:
            token_ids: at most ``step_rows``.

        Raises:
            ShoalError: the tokens do not fit, or the session is lost, which :meth:`advance` mends. Nothing is
                on its way any more.
        """
        length, tokens = self._transcript.length, len(token_ids)
        try:
            codec, end = self.ring.codec, length + len(self.ahead) + tokens
            payload = await self.ends.embed(token_ids, end - tokens, codec, 0)
            await self.ring.send(payload, codec, tokens, tokens, grids=self.ends.pictures.grids(end))
        except BaseException:
            self._take_back(length)
            raise
        self._transcript.sent_ahead(token_ids)

    async def verify(self, sampler: Sampler, ends: Container[int]) -> list[NextToken]:
        """The tokens that the oldest step on its way gives: as many as were sent as they were chosen.

        The first token that was sent ahead must be right. It becomes part of the session, and with it those
        of the step that are. If the last one that is chosen was sent too, the steps behind go on; otherwise
        all that was sent after it is taken back.

        Args:
            ends: tokens after which none is chosen.

        Raises:
            NoCoverage: a hop is lost, and nobody took its place in time.
            ShoalError: a step failed; the session is as long as it was before, and nothing is on its way.
        """
        before, ahead = self._transcript.length, self.ahead
        try:
            returned = await self.ring.receive()
            returned = await self.ends.finish(returned, returned.rows)
        except ShoalError as error:
            # The certain token alone, as if nothing had been guessed.
            self._take_back(before)
            returned = (await self._persist(error, [Piece([ahead[0]])], 1))[-1]
            ahead = ahead[:1]
        except BaseException:
            self._take_back(before)
            raise
        self._heard = trio.current_time()
        self._recovery.relieve(self.ring, cached=before, remaining=self.room)
        try:
            said = self.token_ids[len(self.ends.virtual) : before]
            choose = partial(choose_all, sampler, ahead, said, ends)
            chosen = await self.ends.head(returned, choose)
        except BaseException:
            self._take_back(before)
            raise
        count = len(chosen)
        self._transcript.confirm(Piece(list(ahead[:count])))
        if count < returned.rows or ahead[count : count + 1] != (chosen[-1].token,):
            self.roll_back(before + count)
        return [replace(chosen[0], returned=returned), *chosen[1:]]

    def roll_back(self, position: int) -> None:
        """Forget every token from ``position`` on.

        Raises:
            LocalProtocolError: the session is not that long.
        """
        self._transcript.cut(position)
        self.ends.roll_back(position)
        self.ring.roll_back(position)

    async def sent_hashes(self) -> bytes:
        """The hashes of the rows that the first hop has been sent, one for each token that the hops hold.

        Computed again from the tokens; empty where blocks of this machine made the rows and forgot them.
        """
        return await self.ends.sent_hashes(self._transcript.held_pieces, self.ring.codec)

    async def sent_rows(self, tokens: int) -> list[bytes]:
        """The rows themselves of the first ``tokens`` tokens, each by itself. As :meth:`sent_hashes`."""
        return (await self.ends.sent_rows(self._transcript.held_pieces, self.ring.codec))[:tokens]

    async def aclose(self) -> None:
        """Free the KV here and on every hop."""
        self.ends.close()
        await self._recovery.rings.close(self.ring)

    async def _append(
        self, token_ids: Sequence[int], chunk: int, wanted: int, sequence_length: int = 0, plain: bool = False
    ) -> list[Returned]:
        """Send tokens round the ring; returns the steps that hold the last ``wanted`` rows."""
        self._check(token_ids, chunk)
        self._plain = plain
        transcript = self._transcript
        before = transcript.length
        sequence_length = max(sequence_length, before + len(token_ids))
        if transcript.outdated(sequence_length):
            token_ids, before = [*self.token_ids, *token_ids], 0
            self.roll_back(0)
        # What was sent ahead went in one step, and said that the sequence ends with it.
        goes_on = tuple(token_ids) == transcript.ahead and sequence_length == before + len(token_ids)
        if transcript.ahead and not goes_on:
            self.roll_back(before)
        if goes_on:
            chunk = len(token_ids)
        stages = len(self.ring.route) + len(self.ends.own)
        if self.ends.stateless:
            chunk = len(token_ids)  # each of its tokens sees all others
        bounded = not (self.ends.stateless or goes_on)
        size = partial(self._piece_size, chunk, len(token_ids), stages, bounded)
        pieces = transcript.divide(token_ids, size(), sequence_length, self.ends.pictures.uncut)
        self._heard = trio.current_time()
        try:
            return await self._run(pieces, wanted, size)
        except ShoalError as error:
            self._take_back(before)
            return await self._persist(error, pieces, wanted)
        except BaseException:
            self._take_back(before)
            raise

    def _piece_size(self, chunk: int, tokens: int, stages: int, bounded: bool) -> int:
        """Tokens that the next piece may have, by what is known now.

        Args:
            bounded: whether it may be less than hops that are paid for would take on credit.
        """
        size = chunk or piece_tokens(self.ring.format, tokens, stages, width=self.ring.width)
        most = self.ring.places.most_step_tokens if bounded else None
        return size if most is None else min(size, most)

    async def _persist(self, error: ShoalError, pieces: list[Piece], wanted: int) -> list[Returned]:
        """Run ``pieces``, which came to nothing once; the route is made whole before each new attempt."""
        before = self._transcript.length
        survived: list[RouteChange] = []
        losses, until = 0, self._heard + self._recovery.resume_s
        try:
            while True:
                await self._make_whole(error, survived)
                try:
                    await self._replay()
                    returned = await self._run(pieces, wanted)
                except ShoalError as again:
                    self._take_back(before)
                    error = again
                else:
                    self._note_survived(survived)
                    return returned
                losses += 1
                if losses >= RECOVERIES:
                    if trio.current_time() > until:
                        raise _plain(error)
                    await trio.sleep(LOSSES_PAUSE_S)
        except BaseException:
            # Of a replay that was not finished, nothing is known to be held: the session is empty then.
            self._take_back(0 if self._transcript.owed else before)
            raise

    async def _replay(self) -> None:
        """Send the hops again what they have lost, in the pieces in which it was sent: the bits are the same.

        If that comes to nothing, all of it is owed again, also what had been sent and was not back yet.
        """
        try:
            await self._run(self._transcript.owed, 0)
        except BaseException:
            self._transcript.lose()
            raise

    async def _make_whole(self, error: ShoalError, survived: list[RouteChange]) -> None:
        """Get rid of what caused ``error``; what the hops must be sent again is owed from then on."""
        transcript = self._transcript
        if isinstance(_plain(error), CannotRollBack) and transcript.held:
            # A cache cannot go back (a sliding window, a state): it is built again from the tokens, in the
            # same pieces, so that it holds the same bits. From the first on, every cache can.
            if not isinstance(error, HopFailed):
                self.ends.lose()
            transcript.lose()
            self.ring.roll_back(0)
            return
        if not recoverable(error):
            raise _plain(error)
        old, began = self.ring, self._heard
        self.ring, lost, way = await self._recovery.recover(
            old, error, position=transcript.held, since=began, refill=self._refill
        )
        survived.append(RouteChange(time.time(), trio.current_time() - began, lost, way))
        if self.ring is old:
            return
        transcript.lose()
        if self.ends.merges:
            transcript.join_singles()

    def _note_survived(self, survived: Sequence[RouteChange]) -> None:
        for reroute in survived:
            self.reroutes.append(reroute)
            self._recovery.rings.survived(self.ring, reroute.at, reroute.gap_s, reroute.lost, reroute.way)

    async def _run(
        self, pieces: Sequence[Piece], wanted: int, most: Callable[[], int] = int
    ) -> list[Returned]:
        """Send pieces ahead of their results, as many as may be in flight; returns those with wanted rows.

        Args:
            wanted: how many of the last rows.
            most: as :func:`grow` has it; by default pieces are sent as they are.
        """
        returned: list[Returned] = []
        due: deque[int] = deque()  # of the steps on their way, how many rows of each are wanted
        left = sum(len(piece.token_ids) for piece in pieces)
        for piece in grow(pieces, most):
            tokens = len(piece.token_ids)
            left -= tokens
            while self.ring.rules.in_flight >= IN_FLIGHT:
                returned += await self._receive(due)
            due.append(min(max(wanted - left, 0), tokens))
            if not self._transcript.confirm(piece):
                await self._send(piece, due[-1])
        while due:
            returned += await self._receive(due)
        self._heard = trio.current_time()
        return returned

    async def _send(self, piece: Piece, wanted: int) -> None:
        token_ids, told = piece
        tokens, position, codec = len(token_ids), self._transcript.held, self.ring.codec
        payload = await self.ends.embed(token_ids, position, codec, told)
        rows = self.ends.rows_back(position, tokens, wanted)
        mutual = self.ends.pictures.stretches(position, position + tokens)
        grids = self.ends.pictures.grids(position + tokens)
        await self.ring.send(payload, codec, tokens, rows, told, mutual, grids)
        self._transcript.sent(piece)

    async def _receive(self, due: deque[int]) -> list[Returned]:
        """The oldest step on its way, if rows of it are wanted."""
        wanted = due.popleft()
        if self._plain and not due:
            self.ends.prepare(self.ring.session, self.ring.awaited)
        try:
            returned = await self.ring.receive()
        finally:
            self.ends.hold()
        finished = await self.ends.finish(returned, wanted)
        return [finished] if wanted else []

    def _check(self, token_ids: Sequence[int], chunk: int) -> None:
        if chunk < 0:
            raise UsageError(
                f"a chunk of {chunk} tokens", check="give a number above 0, or 0 to let it be chosen"
            )
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

    async def _refill(self, ring: Ring, hops: int) -> None:
        """Send the first ``hops`` hops what the session's tokens are to them; nothing comes back."""
        held = self._transcript.held_pieces
        position = 0
        for token_ids, told in join_singles(held) if self.ends.merges else held:
            payload = await self.ends.embed(token_ids, position, ring.codec, told)
            end = position + len(token_ids)
            mutual, grids = self.ends.pictures.stretches(position, end), self.ends.pictures.grids(end)
            await ring.fill(payload, ring.codec, position, len(token_ids), hops, told, mutual, grids)
            position = end

    def _take_back(self, position: int) -> None:
        """Take the session back to ``position``, whatever became of the steps under way.

        Where a replay was under way, all is owed again: of what the hops have by now, nothing is known.
        """
        if self._transcript.owed:
            self._transcript.lose()
        self._transcript.cut(position)
        self.ends.roll_back(position)
        self.ring.roll_back(min(self._transcript.held, self.ring.rules.length))

    def _choose(self, sampler: Sampler, following: Issued | None, logits: Floats) -> int:
        """The next token. If it has a step, that is sent from the thread that runs this, without waiting."""
        virtual = len(self.ends.virtual)
        token = sampler.choose(logits[-1], self.token_ids[virtual:] if virtual else self.token_ids)
        if following is not None:
            codec = self.ring.codec
            launch = partial(_launch, self.ring, following, codec)
            self.ends.embed_then([token], following.position, codec, following.sequence_length, launch)
        return token


def _launch(ring: Ring, following: Issued, codec: Codec, made: Embedded, after: After) -> None:
    """Send a step once its hidden states are made. The session may be on another ring by then."""
    if isinstance(made, ShoalError):
        ring.abandon(following, made)
    elif (send := ring.launch(following, made, codec)) is not None:
        after(send)


def _plain(error: ShoalError) -> ShoalError:
    """The error itself, without which hop it came from."""
    return error.error if isinstance(error, HopFailed) else error
