"""The ends at work for many sessions: the embedding, and one head for all that is ready."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import outcome

from shoal.errors import PromptTooLong, ShoalError, UsageError
from shoal.executor.arrays import Array, Floats, address, empty, join, split, widen
from shoal.executor.batcher import Batcher, ForwardOutput, Job, JobSlice
from shoal.executor.engine import Engine
from shoal.executor.kernels.c_kernels import Matrix, ThreadTeam
from shoal.executor.kernels.decode_steps import AwaitedResult, DecodeSteps, RanTimes
from shoal.executor.kernels.structs import MOST_STEPS, EndsStruct
from shoal.executor.shape import LlamaShape
from shoal.executor.thread import ComputeThread, ThreadReply
from shoal.executor.weights.tensors import Tensors
from shoal.executor.weights.weight_cache import WeightCache
from shoal.models.build.rope_scaling import RopeScaling
from shoal.models.checkpoint.checkpoint import Checkpoint
from shoal.models.checkpoint.floats import StoredMatrix
from shoal.types import Exactness, Format, SessionId

_ResultT = TypeVar("_ResultT")

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head"
NORM = "model.norm.weight"


class EndsRunner(Protocol):
    """The embedding and the head of a model. For one thread at a time."""

    tensor_bytes: int
    """Bytes of weights in memory."""
    sliced: bool
    """As a runner's: whether many rows may go through the head in slices."""
    bits: Exactness
    """As a runner's: on what the bits of logits depend."""

    stateless: bool
    """As a runner's: whether the model takes in a whole text at once. It then has no head."""

    rope_scaling: RopeScaling
    """How the blocks' rotary frequencies follow from a sequence's length."""

    @property
    def encoder(self) -> SourceRunner | None:
        """The encoder's ends, of a model that has one before its decoder: all else here is the decoder's."""
        ...

    def embed(self, token_ids: Sequence[int], position: int) -> Floats:
        """What the first block receives, ``[n, width]``, for tokens ``[position, position + n)``.

        Raises:
            UsageError: no tokens, or one outside of the vocabulary.
            PromptTooLong: positions beyond the model's context.
        """
        ...

    def heads(self, batch: Sequence[Floats]) -> list[ForwardOutput]:
        """Logits, float32 ``[n, vocab]``, of what the last block gave each of several sessions."""
        ...

    def last_hidden(self, hidden: Floats) -> ForwardOutput:
        """The model's last hidden states ``[n, width]``, after its last norm, of what the last block gave."""
        ...

    def decode_steps(self) -> DecodeSteps | None:
        """What answers decode steps from bytes to bytes; ``None`` where nothing can."""
        ...


class SourceRunner(EndsRunner, Protocol):
    """What is before and behind the blocks of an encoder. For one thread at a time."""

    def hear(self, features: Floats) -> Floats:
        """What the first block receives, ``[n, width]``, for log-mel features ``[bins, frames]``.

        Raises:
            UsageError: they have another shape.
            UnsupportedModel: the encoder reads text.
        """
        ...


class FusedEmbedding:
    """The embedding of a model of Llama's shape. It stays in the checkpoint's file."""

    def __init__(self, weights: Array | StoredMatrix, factor: float, context: int) -> None:
        self._weights = weights
        self._factor = factor
        self._context = context

    def rows(self, token_ids: Sequence[int], position: int) -> Floats:
        """As :meth:`EndsRunner.embed`."""
        vocab = len(self._weights)
        if not token_ids or min(token_ids) < 0 or max(token_ids) >= vocab:
            raise UsageError(
                f"token ids must be in 0..{vocab - 1}, and at least one",
                check="check that the token ids come from this model's tokenizer",
            )
        if position < 0 or position + len(token_ids) > self._context:
            raise PromptTooLong(
                f"position {position + len(token_ids)} is beyond the context of {self._context} tokens"
            )
        rows = widen(self._weights[np.asarray(token_ids)])
        return rows * np.float32(self._factor) if self._factor != 1.0 else rows

    def describe(self, ends: EndsStruct) -> bool:
        """Tell the kernels where the embedding is; whether it is so that they can read it."""
        weights = self._weights
        if not isinstance(weights, np.ndarray) or not weights.flags.c_contiguous or not weights.flags.aligned:
            return False
        ends.embedding, ends.factor = address(weights), self._factor
        ends.bfloat16 = weights.dtype == np.uint16
        shape = (ends.head.rows, ends.head.cols)
        return weights.dtype in (np.uint16, np.float32) and weights.shape == shape


class FusedEnds:
    """The ends of a model of Llama's shape, on the kernels."""

    sliced = True
    stateless = False
    rope_scaling = RopeScaling()
    """Frequencies that change are not of the shape."""
    encoder = None

    def __init__(self, shape: LlamaShape, weights: EndsWeights, team: ThreadTeam) -> None:
        self._shape = shape
        self._weights = weights
        self._team = team
        self.bits: Exactness = "batch" if weights.head.layout in ("fp32", "bf16") else "rows"
        self.tensor_bytes = weights.head.bytes + weights.norm.nbytes

    def embed(self, token_ids: Sequence[int], position: int) -> Floats:
        return self._weights.embedding.rows(token_ids, position)

    def last_hidden(self, hidden: Floats) -> Floats:
        return self._team.rms_norm(hidden, self._weights.norm, self._shape.epsilon)

    def heads(self, batch: Sequence[Floats]) -> list[ForwardOutput]:
        normed = self.last_hidden(join(batch))
        logits = self._team.linear(self._weights.head, normed)
        if self._shape.logits != 1.0:
            # In place: the logits of many sessions are large, and nobody else has them.
            logits /= np.float32(self._shape.logits)
        return [*split(logits, [len(hidden) for hidden in batch])]

    def decode_steps(self) -> DecodeSteps | None:
        shape, head, norm = self._shape, self._weights.head, self._weights.norm
        normed, scores = empty((MOST_STEPS, head.cols)), empty((MOST_STEPS, head.rows))
        ends = EndsStruct(
            head=head.struct(),
            norm=address(norm),
            epsilon=shape.epsilon,
            logits=shape.logits,
            normed=address(normed),
            scores=address(scores),
        )
        if not self._weights.embedding.describe(ends):
            return None
        return DecodeSteps(self._team, ends, head.cols, (self._weights, normed, scores))


@dataclass(frozen=True, slots=True)
class EndsWeights:
    """The ends of a model of Llama's shape, read."""

    embedding: FusedEmbedding
    norm: Floats
    head: Matrix


def read_ends(
    checkpoint: Checkpoint, shape: LlamaShape, format: Format, *, context: int, weight_cache: WeightCache
) -> EndsWeights:
    """Map the embedding, and read and pack the head; in int4 and w8a8, whose error is most there, it is int8.

    Raises:
        BadWeights: a tensor is missing or has another shape.
    """
    tensors = Tensors(checkpoint)
    name = HEAD if f"{HEAD}.weight" in tensors else EMBEDDING.removesuffix(".weight")
    matrix = tensors.mapped(EMBEDDING, shape.hidden)
    vocab = len(matrix)
    packed = weight_cache.fetch(
        "head", lambda: {"head": tensors.matrix([name], vocab, shape.hidden, head_format(format))}
    )
    norm = tensors.vector(NORM, shape.hidden, shape.norm_offset)
    embedding = FusedEmbedding(matrix, shape.embedding, context)
    return EndsWeights(embedding, norm, packed["head"])


def head_format(format: Format) -> Format:
    """What the head is held in, in a route of ``format``."""
    return "int8" if format in ("int4", "w8a8") else format


class EndsEngine:
    """The ends for many sessions: what is ready together runs together.

    Args:
        first: the first blocks of the model, where the client runs them itself.
        last: the last ones.
    """

    def __init__(
        self,
        ends: EndsRunner,
        thread: ComputeThread,
        first: Engine | None = None,
        last: Engine | None = None,
    ) -> None:
        self.ends = ends
        self.first = first
        self.last = last
        self._thread = thread
        self._batcher = Batcher[Job](self._forward, thread, sliced=ends.sliced, bits=ends.bits)
        self.encoder = None if ends.encoder is None else EndsEngine(ends.encoder, thread)
        """Those of the encoder before a decoder."""
        self.decode_steps = ends.decode_steps()
        """What answers decode steps from bytes to bytes, where the ends can."""
        self._seats: dict[Hashable, tuple[SessionId, int]] = {}
        self._sitting: dict[SessionId, Hashable] = {}

    @property
    def wait_s(self) -> float:
        """For so long a head waits for sessions that are nearly here."""
        return self._batcher.wait_s

    def borrow(self) -> bool:
        """As :meth:`Batcher.borrow`, to use ``decode_steps``."""
        return self._batcher.borrow()

    def give_back(self) -> None:
        """Let the thread that computes go on."""
        self._batcher.give_back()

    def prepare(self, session: Hashable, ring: SessionId, result: AwaitedResult) -> None:
        """Let the next result of a session be answered by ``decode_steps``, where there is a seat for it.

        Args:
            ring: by what the session is known to its hops.
        """
        if (steps := self.decode_steps) is None:
            return
        if session in self._seats and self._seats[session][0] != ring:
            self._leave(session)
        if session not in self._seats:
            if (free := steps.take_seat(ring)) is None:
                return
            self._seats[session], self._sitting[ring] = (ring, free), session
        _, seat = self._seats[session]
        rhythm = self._batcher.rhythm(session)
        steps.note_rhythm(seat, rhythm.left, rhythm.away)
        steps.prepare_result(seat, result)

    def hold(self, session: Hashable) -> None:
        """A session's next result goes the ordinary way."""
        if self.decode_steps is not None and session in self._seats:
            self.decode_steps.hold(self._seats[session][1])

    def note_answered(self, rings: Sequence[SessionId], times: RanTimes) -> None:
        """Results of these sessions were answered together, in the place of the thread that computes."""
        sessions = [self._sitting[ring] for ring in rings]
        self._batcher.note_run(sessions, times.asked, times.began, times.ended)

    def _leave(self, session: Hashable) -> None:
        ring, seat = self._seats.pop(session)
        del self._sitting[ring]
        if self.decode_steps is not None:
            self.decode_steps.leave_seat(seat)

    async def last_hidden(self, hidden: Callable[[], Floats]) -> Floats:
        """The last hidden states of what the last block gave, each ``[rows, width]``: no head is computed.

        ``hidden`` runs on the thread that computes.

        Raises:
            ShoalError: what it raises, or what is behind the blocks failed.
        """

        def run() -> Floats:
            found = self.ends.last_hidden(hidden())
            if isinstance(found, ShoalError):
                raise found
            return found

        return await self._thread.run(run)

    async def head(
        self,
        session: Hashable,
        rows: int,
        hidden: Callable[[], Floats],
        then: Callable[[Floats], _ResultT],
    ) -> _ResultT:
        """What ``then`` makes of the logits ``[rows, vocab]`` of ``hidden``, float32 ``[rows, width]``.

        Both functions run on the thread that computes. A caller that is cancelled no longer waits.

        Raises:
            ShoalError: what either of them raises.
        """
        reply = ThreadReply[_ResultT]()

        def finish(logits: Floats) -> None:
            # Once all have what they wanted and it has been sent: who waits would take the interpreter.
            self.after(partial(reply.give, outcome.capture(then, logits)))

        self.head_then(session, rows, hidden, finish, lambda error: reply.give(outcome.Error(error)))
        return await reply.wait()

    def head_then(
        self,
        session: Hashable,
        rows: int,
        hidden: Callable[[], Floats],
        then: Callable[[Floats], None],
        failed: Callable[[ShoalError], None],
    ) -> None:
        """The same for a caller who does not wait: one of both is called, on the thread that computes."""
        self._batcher.submit(Job(session, rows, rows, hidden, lambda _, logits: then(logits), failed))

    def close(self, session: Hashable) -> None:
        """Forget a session: nobody waits for its next step."""
        if session in self._seats:
            self._leave(session)
        self._batcher.end(session, lambda: None)

    def after(self, function: Callable[[], None]) -> None:
        """Have ``function`` run once all that ran together have their results. To be called by ``then``."""
        self._batcher.after(function)

    def _forward(self, batch: Sequence[JobSlice[Job]]) -> list[ForwardOutput]:
        return self.ends.heads([piece.hidden for piece in batch])
