"""A draft model in memory: all the blocks of a small model and its ends, on a thread of their own.

Each answer has KV of its own in it (:mod:`shoal.client.speculation.model_drafter`). What several answers ask
at once runs together, as steps do at a hop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import outcome

from shoal.config import Settings
from shoal.errors import OutOfResources, ShoalError, UnsupportedModel
from shoal.executor.arrays import Floats
from shoal.executor.codecs import decode, encode
from shoal.executor.device.device import memory_budget
from shoal.executor.device.find import find_device
from shoal.executor.ends import EndsEngine, head_format
from shoal.executor.engine import Engine, StepOutput
from shoal.executor.kernels.built import kernels_built
from shoal.executor.load import holds_published, load_ends_runner, load_runner
from shoal.executor.thread import ComputeThread, ThreadReply
from shoal.models.checkpoint.sizes import block_bytes
from shoal.models.store.local_model import LocalModel
from shoal.routing.formats import choose_format
from shoal.types import WEIGHT_BYTES, Format, SessionId, Span

Choose = Callable[[Floats, Sequence[int]], int]
"""The next token by these logits ``[vocab]``, after what the same guess has guessed so far."""

MEASURED = 4
"""Tokens by which it is measured what one takes, after one that warms up."""


class DraftModel:
    """Made by :func:`load_draft`; ``close`` frees it.

    Args:
        context: the longest text that it was made for.
    """

    def __init__(self, blocks: Engine, ends: EndsEngine, thread: ComputeThread, context: int) -> None:
        self.blocks = blocks
        self.ends = ends
        self.context = context
        self.token_s = 0.0
        """What a token took when it was loaded; seconds."""
        self._thread = thread

    @property
    def tensor_bytes(self) -> int:
        """Of its weights in memory."""
        return self.blocks.runner.tensor_bytes + self.ends.ends.tensor_bytes

    async def open(self, session: SessionId, tokens: int) -> None:
        """Reserve KV for a text of ``tokens`` tokens.

        Raises:
            Busy: there is no room for it.
        """
        await self.blocks.open(session)
        try:
            self.blocks.grow(session, tokens)
        except BaseException:
            self.blocks.close(session)
            raise

    def free(self, session: SessionId) -> None:
        """Free it. Twice is no error."""
        self.ends.close(session)
        self.blocks.close(session)

    async def guess(
        self,
        session: SessionId,
        position: int,
        token_ids: Sequence[int],
        count: int,
        choose: Choose,
        guessed: list[int],
    ) -> None:
        """Append ``token_ids`` from ``position`` on, where the KV is cut, and then guess ``count`` tokens.

        Args:
            guessed: gets the guesses as they come, of which all but the last are appended too. Who is
                cancelled meanwhile has some of them, and must take the KV for no longer than ``position``.

        Raises:
            ShoalError: it came to nothing.
        """
        await _Guess(self, session, count, choose, guessed).run(token_ids, position)

    async def measure(self) -> None:
        """Find out what a token takes. Raises as :meth:`guess`."""
        session = SessionId(b"measured draft  ")
        await self.open(session, MEASURED + 2)
        try:
            await self.guess(session, 0, [0], 1, _first, [])
            began = time.perf_counter()
            await self.guess(session, 1, [0], MEASURED, _first, [])
            self.token_s = (time.perf_counter() - began) / MEASURED
        finally:
            self.free(session)

    def post(self, function: Callable[[], None]) -> None:
        """Have ``function`` run on the thread that computes."""
        self._thread.post(function)

    def close(self) -> None:
        """Let the thread end; the memory goes with the last who holds this."""
        self._thread.close()


def _first(logits: Floats, guessed: Sequence[int]) -> int:
    return 0


@dataclass(eq=False, slots=True)
class _Guess:
    """Tokens one after the other without a turn of the event loop between them. All on the model's thread."""

    model: DraftModel
    session: SessionId
    count: int
    choose: Choose
    guessed: list[int]

    async def run(self, token_ids: Sequence[int], position: int) -> None:
        reply = ThreadReply[None]()
        self.model.post(lambda: self._append(token_ids, position, reply))
        await reply.wait()

    def _append(self, token_ids: Sequence[int], position: int, reply: ThreadReply[None]) -> None:
        if not reply.wanted:
            return
        after, rows = position + len(token_ids), len(token_ids)
        wanted = 1 if self.count else 0

        def out(step: StepOutput | ShoalError) -> None:
            if isinstance(step, ShoalError):
                reply.give(outcome.Error(step))
            elif not wanted:
                reply.give(outcome.Value(None))
            else:
                hidden = step.payload
                self.model.ends.head_then(
                    self.session,
                    1,
                    lambda: decode(hidden, "float32", 1, self.model.blocks.width),
                    lambda logits: self._choose(logits, after, reply),
                    lambda error: reply.give(outcome.Error(error)),
                )

        try:
            payload = encode(self.model.ends.ends.embed(token_ids, position), "float32")
            self.model.blocks.submit(self.session, position, payload, "float32", rows, wanted, "float32", out)
        except BaseException as error:  # noqa: BLE001  a model's own code; raised where it is waited for
            reply.give(outcome.Error(error))

    def _choose(self, logits: Floats, position: int, reply: ThreadReply[None]) -> None:
        token = self.choose(logits[-1], self.guessed)
        self.guessed.append(token)
        if len(self.guessed) < self.count:
            self._append([token], position, reply)
        else:
            reply.give(outcome.Value(None))


def draft_format(local: LocalModel, device: str) -> Format:
    """How a draft model holds its weights on ``device``: as a node would that is the first to serve it.

    Raises:
        BadWeights, UnsupportedModel: see ``open_checkpoint``.
    """
    on_cpu = find_device(device).device.is_cpu
    chosen = choose_format(
        "auto",
        local.dtype,
        kernels=kernels_built(),
        accelerator=not on_cpu,
        published=(kernels_built() or not on_cpu) and holds_published(local),
    )
    return chosen.format


def draft_bytes(local: LocalModel, format: Format) -> int:
    """Bytes of a draft model's weights in memory, before it is loaded. Raises as ``block_bytes``."""
    held = "bf16" if format == "published" else head_format(format)
    head = local.shape.vocab_size * local.shape.hidden_size * WEIGHT_BYTES[held]
    return sum(block_bytes(local, format)) + round(head)


def load_draft(local: LocalModel, settings: Settings, thread: ComputeThread) -> DraftModel:
    """Load a draft model. On ``thread``.

    Raises:
        UsageError: the device that the settings name is not here.
        BadWeights, UnsupportedModel: it cannot be loaded, or its KV cannot return to an earlier position.
        OutOfResources: there is no memory for it.
    """
    device = find_device(settings.device).device
    format, budget = draft_format(local, settings.device), memory_budget(settings, device)
    if (needed := draft_bytes(local, format)) >= budget:
        raise OutOfResources(
            f"the draft model {local.name} takes {needed >> 20} MiB in {format}, "
            f"and {budget >> 20} MiB on {device} may be used",
            check="choose a smaller draft model, or set memory to more",
        )
    whole, kernels, cache = Span(0, local.shape.n_blocks), settings.kernels, settings.paths.cache
    threads, name = settings.threads, device.name
    ends = load_ends_runner(local, format, threads=threads, cache=cache, device=name, kernels=kernels)
    runner = load_runner(
        local, whole, format, kv=settings.kv, threads=threads, cache=cache, device=name, kernels=kernels
    )
    if not runner.capabilities.roll_back or ends.rope_scaling:
        raise UnsupportedModel(
            f"{local.name} cannot be a draft model: it cannot take back tokens that were guessed wrongly",
            check="choose a draft model without a sliding window, a state or frequencies that change",
        )
    tokens = min(settings.kv_tokens, int((budget - needed) // max(runner.kv_bytes, 1)))
    engine = Engine(runner, runner.make_pool(max(tokens, 1)), thread, format=format)
    return DraftModel(engine, EndsEngine(ends, thread), thread, local.shape.context)
