"""The ends at work for many sessions: the embedding, and one head for all that is ready."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import outcome
import torch
from safetensors import safe_open

from shoal.errors import PromptTooLong, ShoalError, UsageError
from shoal.executor.batcher import Batcher, Job, Outcome, Piece
from shoal.executor.fused import Tensors
from shoal.executor.kernels import Matrix, Team
from shoal.executor.shape import LlamaShape
from shoal.executor.shelf import Shelf
from shoal.executor.thread import Reply, TorchThread
from shoal.models import ends as model_ends
from shoal.models.checkpoint import Checkpoint
from shoal.models.rope_scaling import RopeScaling
from shoal.types import Format

Result = TypeVar("Result")

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head"
NORM = "model.norm.weight"


class Ends(Protocol):
    """The embedding and the head of a model. For one thread at a time."""

    tensor_bytes: int
    """Bytes of weights in memory."""
    sliced: bool
    """As a runner's: whether many rows may go through the head in slices."""

    rope_scaling: RopeScaling
    """How the blocks' rotary frequencies follow from a sequence's length."""

    def embed(self, token_ids: Sequence[int], position: int) -> torch.Tensor:
        """What the first block receives, float32 ``[n, width]``, for tokens ``[position, position + n)``.

        Raises:
            UsageError: no tokens, or one outside of the vocabulary.
            PromptTooLong: positions beyond the model's context.
        """
        ...

    def heads(self, batch: Sequence[torch.Tensor]) -> list[Outcome]:
        """Logits, float32 ``[n, vocab]``, of what the last block gave each of several sessions."""
        ...


class ModuleEnds:
    """The model's own modules: exact, any family, one session after another."""

    sliced = False

    def __init__(self, ends: model_ends.Ends) -> None:
        self._ends = ends
        self.tensor_bytes = ends.tensor_bytes
        self.rope_scaling = ends.rope_scaling

    def embed(self, token_ids: Sequence[int], position: int) -> torch.Tensor:
        return self._ends.embed(token_ids, position)[0].float().cpu()

    def heads(self, batch: Sequence[torch.Tensor]) -> list[Outcome]:
        return [self._head(hidden) for hidden in batch]

    def _head(self, hidden: torch.Tensor) -> Outcome:
        try:
            return self._ends.head(hidden[None].to(self._ends.dtype))[0].float().cpu()
        except ShoalError as error:
            return error


class FusedEnds:
    """The ends of a model of Llama's shape, on the kernels. The embedding stays in the checkpoint's file."""

    sliced = True
    rope_scaling = RopeScaling()
    """Frequencies that change are not of the shape."""

    def __init__(
        self,
        shape: LlamaShape,
        embedding: torch.Tensor,
        norm: torch.Tensor,
        head: Matrix,
        *,
        context: int,
        team: Team,
    ) -> None:
        self._shape = shape
        self._embedding = embedding
        self._norm = norm
        self._head = head
        self._context = context
        self._team = team
        self.tensor_bytes = head.bytes + norm.numel() * 4

    def embed(self, token_ids: Sequence[int], position: int) -> torch.Tensor:
        vocab = len(self._embedding)
        if not token_ids or min(token_ids) < 0 or max(token_ids) >= vocab:
            raise UsageError(f"token ids must be in 0..{vocab - 1}, and at least one", check="the tokenizer")
        if position < 0 or position + len(token_ids) > self._context:
            raise PromptTooLong(
                f"position {position + len(token_ids)} is beyond the context of {self._context} tokens"
            )
        if len(token_ids) == 1:  # every decode step: without a tensor of indexes
            rows = self._embedding[token_ids[0] : token_ids[0] + 1].to(torch.float32, copy=True)
        else:
            rows = self._embedding[torch.tensor(token_ids)].float()
        return rows * self._shape.embedding if self._shape.embedding != 1.0 else rows

    def heads(self, batch: Sequence[torch.Tensor]) -> list[Outcome]:
        normed = self._team.rms_norm(torch.cat(list(batch)), self._norm, self._shape.epsilon)
        logits = self._team.linear(self._head, normed)
        if self._shape.logits != 1.0:
            logits /= self._shape.logits
        return list(logits.split([len(hidden) for hidden in batch]))


def load_fused_ends(
    checkpoint: Checkpoint, shape: LlamaShape, format: Format, *, context: int, team: Team, shelf: Shelf
) -> FusedEnds:
    """Map the embedding, and read and pack the head; int4's head is int8, where most of its error would be.

    Raises:
        BadWeights: a tensor is missing or has another shape.
    """
    with ExitStack() as stack:
        tensors = Tensors(checkpoint, stack)
        tied = f"{HEAD}.weight" not in tensors
        name = EMBEDDING.removesuffix(".weight") if tied else HEAD
        entry = tensors.entry(EMBEDDING)
        packed = shelf.fetch(
            "head",
            lambda: {"head": tensors.matrix([name], entry.shape[0], shape.hidden, head_format(format))},
        )
        norm = tensors.vector(NORM, shape.hidden, shape.norm_offset)
    embedding = _mapped(entry.file, EMBEDDING)
    return FusedEnds(shape, embedding, norm, packed["head"], context=context, team=team)


def head_format(format: Format) -> Format:
    """What the head is held in, in a route of ``format``."""
    return "int8" if format == "int4" else format


def _mapped(file: Path, name: str) -> torch.Tensor:
    """A tensor that stays pages of its file: only the rows that are used come into memory."""
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)


class EndsEngine:
    """The head for many sessions: what is ready together runs together."""

    def __init__(self, ends: Ends, thread: TorchThread) -> None:
        self.ends = ends
        self._batcher = Batcher(self._forward, thread, sliced=ends.sliced)

    async def head(
        self,
        session: Hashable,
        rows: int,
        hidden: Callable[[], torch.Tensor],
        then: Callable[[torch.Tensor], Result],
    ) -> Result:
        """What ``then`` makes of the logits ``[rows, vocab]`` of ``hidden``, float32 ``[rows, width]``.

        Both functions run on the thread that computes. A caller that is cancelled no longer waits.

        Raises:
            ShoalError: what either of them raises.
        """
        reply = Reply[Result]()

        def finish(job: Job, logits: torch.Tensor) -> None:
            # Once all have what they wanted and it has been sent: who waits would take the interpreter.
            self.after(partial(reply.give, outcome.capture(then, logits)))

        self._batcher.submit(
            Job(session, rows, rows, hidden, finish, lambda error: reply.give(outcome.Error(error)))
        )
        return await reply.wait()

    def close(self, session: Hashable) -> None:
        """Forget a session: nobody waits for its next step."""
        self._batcher.end(session, lambda: None)

    def after(self, function: Callable[[], None]) -> None:
        """Have ``function`` run once all that ran together have their results. To be called by ``then``."""
        self._batcher.after(function)

    def _forward(self, batch: Sequence[Piece]) -> list[Outcome]:
        return self.ends.heads([piece.hidden for piece in batch])
