"""Tunes an adapter: batches through the blocks of others, AdamW here (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import trio

from shoal.client.sampling import Sampling
from shoal.client.tuning import checkpoint
from shoal.client.tuning.answers import TunedAnswer, sample_answers
from shoal.client.tuning.blocks import NotFinite, Passed, TuningBlocks
from shoal.client.tuning.checkpoint import TuningState
from shoal.client.tuning.data import Example, batches, example_inputs
from shoal.client.tuning.ends import TuningEnds
from shoal.client.tuning.tuned import Tuned, TuningMethod
from shoal.errors import StepFailed, UsageError
from shoal.executor.arrays import Floats
from shoal.executor.thread import ComputeThread
from shoal.models.store.local_model import LocalModel
from shoal.training.federated.outer import proximal_gradient

MAX_ALPHA = 1e6
"""No adapter with as much is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningOptions:
    """How an adapter is tuned. Raises UsageError: a number that cannot be."""

    method: TuningMethod = "lora"
    """What is tuned: matrices beside the layers of each block, or rows before each prompt."""
    prompt_tokens: int = 20
    """Rows of a soft prompt."""
    rank: int = 8
    alpha: float = 16.0
    layers: tuple[str, ...] = ()
    """The last names of the linear layers that are tuned; empty: those of attention and MLP."""
    rate: float = 2e-4
    """AdamW's learning rate, after the warm-up."""
    warmup: int = 10
    """Steps in which the rate rises from 0."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """The largest norm of a step's gradients; 0: any."""
    epochs: int = 1
    steps: int = 0
    """Ends after so many steps, whatever of the data is left; 0: at the end of the last epoch."""
    batch_tokens: int = 1024
    """Tokens that travel together; each example of them runs by itself."""
    accumulate: int = 1
    """Batches of one step of the optimizer."""
    seed: int = 0
    save_every: int = 50
    evaluate_every: int = 50
    most_bad: int = 5
    """Steps in a row without a finite loss after which tuning ends."""

    def __post_init__(self) -> None:
        least = {
            **dict.fromkeys(("warmup", "steps", "rate", "weight_decay", "clip"), 0),
            **dict.fromkeys(("rank", "prompt_tokens", "epochs", "batch_tokens", "accumulate"), 1),
            **dict.fromkeys(("save_every", "evaluate_every", "most_bad"), 1),
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= smallest):
                raise UsageError(f"{name} is {value}", check=f"choose a number from {smallest} on")
        if not 0 < self.alpha < MAX_ALPHA:
            raise UsageError(f"alpha is {self.alpha}", check=f"choose one above 0 and below {MAX_ALPHA:.0f}")
        if self.method == "prompt" and self.layers:
            raise UsageError("a soft prompt changes no layers", check="leave --layer out, or tune by lora")


@dataclass(frozen=True, slots=True)
class TuningStep:
    """What one step came to."""

    step: int
    steps: int
    loss: float
    """Mean over the tokens that are learnt."""
    tokens_s: float
    """Tokens through the model, forward and backward, in a second."""
    evaluation: float | None = None
    """Mean loss over the examples that are kept back, where they were looked at."""
    skipped: int = 0
    """Steps so far whose loss was not finite."""
    replaced: int = 0
    """Hops so far in whose place others came."""


class Tuner:
    """One run.

    Args:
        folder: where checkpoints and the finished adapter are written; a killed run goes on from there.

    Raises:
        UsageError: there are no examples, one is too long, or the folder cannot be one.
    """

    def __init__(
        self,
        local: LocalModel,
        adapter: Tuned,
        blocks: TuningBlocks,
        ends: TuningEnds,
        thread: ComputeThread,
        examples: Sequence[Example],
        held_back: Sequence[Example],
        options: TuningOptions,
        folder: Path,
    ) -> None:
        self._local, self.adapter, self._blocks, self._ends = local, adapter, blocks, ends
        self._thread = thread
        self._before = 0 if adapter.rows is None else len(adapter.rows)
        """Positions that each example has beside its own."""
        self._examples, self._held_back, self._options = examples, held_back, options
        self._folder = checkpoint.checkpoint_folder(folder)
        self.optimizer = torch.optim.AdamW(
            adapter.parameters, lr=options.rate, weight_decay=options.weight_decay
        )
        self._history: list[tuple[int, float]] = []
        self._evaluations: list[tuple[int, float]] = []
        self._taken = 0  # steps
        self._skipped = self._bad = 0
        self._anchor: tuple[float, list[torch.Tensor]] = (0.0, [])
        self._batch_tokens = min(options.batch_tokens, blocks.most_rows)
        self._check_lengths("the data", examples)
        self._check_lengths("the examples kept back", held_back)
        self._plan = self._planned()

    @property
    def examples(self) -> Sequence[Example]:
        """What is learnt from."""
        return self._examples

    @property
    def history(self) -> Sequence[tuple[int, float]]:
        """The losses of all steps so far, by step, also of those before a kill."""
        return self._history

    @property
    def evaluations(self) -> Sequence[tuple[int, float]]:
        """The losses over the examples that are kept back, by the step after which they were looked at."""
        return self._evaluations

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return len(self._plan)

    async def run(self) -> AsyncGenerator[TuningStep]:
        """Tune, from the folder's checkpoint on if it has one; tells of each step. Nothing where that is the
        run's last one.

        A run that is given up has in its folder what was done until ``save_every`` steps were last full.

        Raises:
            UsageError: the folder holds something else, or a checkpoint of another run.
            BadWeights: its checkpoint is damaged.
            StepFailed: losses stay NaN or infinite.
            NoCoverage: nobody trains some of the blocks.
            ShoalError: what the hops of one route after another have said.
            OutOfResources, OSError: a checkpoint cannot be written.
        """
        if not self._plan:
            raise UsageError("there is nothing to learn from", check="give at least one example")
        for step in range(await self.resume(), self.steps):
            done = await self._timed(self._plan[step])
            last = step + 1 == self.steps
            if self._held_back and (last or (step + 1) % self._options.evaluate_every == 0):
                evaluation = await self.evaluate(self._held_back)
                done = replace(done, evaluation=evaluation)
                self._evaluations.append((done.step, evaluation))
            if last or (step + 1) % self._options.save_every == 0:
                await self.save()
            yield done

    async def resume(self) -> int:
        """Go on from the folder's checkpoint, if it has one. Raises as :meth:`run`.

        Returns:
            The steps that were taken so far.
        """
        checkpoint.check_is_of_tuning(self._folder)
        restore = partial(checkpoint.restore, self._folder, self.adapter, self.optimizer, self._identity())
        state = await trio.to_thread.run_sync(restore)
        if state is not None:
            self._taken, self._history = state.step, list(state.history)
            self._evaluations = list(state.evaluations)
        return self._taken

    async def learn(self, examples: Sequence[Example]) -> TuningStep:
        """One step of the optimizer by examples that are made as it goes on, such as answers with advantages.

        Nothing is written: :meth:`save` does that, and :meth:`resume` goes on from there.

        Raises:
            UsageError: there are none, or one is too long.
            ShoalError: as :meth:`run`.
        """
        self._check_lengths("an example", examples)
        if not examples:
            raise UsageError("there is nothing to learn from", check="give at least one example")
        tokens, seed = self._batch_tokens, self._options.seed
        return await self._timed(
            batches(examples, tokens=tokens, seed=seed, epoch=self._taken, beside=self._before)
        )

    async def gradients(self, examples: Sequence[Example]) -> float:
        """The gradients of the mean loss of examples, added up in the adapter's parameters and clipped. No
        step follows from them: whoever asks makes it. Where loss or gradients are not finite they are none.

        Returns:
            The loss.

        Raises:
            UsageError, ShoalError: as :meth:`learn`.
        """
        self._check_lengths("an example", examples)
        tokens, seed = self._batch_tokens, self._options.seed
        step = batches(examples, tokens=tokens, seed=seed, epoch=self._taken, beside=self._before)
        loss = await self._add_gradients(step)
        self._taken += 1
        if loss is None:
            self.optimizer.zero_grad()
        return math.nan if loss is None else loss

    async def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, max_tokens: int, seed: int
    ) -> list[TunedAnswer]:
        """An answer to each prompt by the model with the adapter as it is now.

        As :func:`shoal.client.tuning.answers.sample_answers`, which says what it costs.
        """
        await self._thread.run(partial(self._ends.put_before, self.adapter.rows))
        return await sample_answers(
            (self._blocks, self._ends, self._thread),
            prompts,
            sampling,
            max_tokens=max_tokens,
            seed=seed,
            end_tokens=self._local.end_tokens,
            batch_tokens=self._batch_tokens,
        )

    def hold_near(self, strength: float) -> None:
        """From now on hold the adapter near to what it is now, by FedProx's term of the loss; 0: no more."""
        begun = [half.detach().clone() for half in self.adapter.parameters] if strength else []
        self._anchor = (strength, begun)

    async def evaluate(self, examples: Sequence[Example]) -> float:
        """The mean loss over the learnt tokens of ``examples``; NaN where hops come to no finite numbers."""
        total = 0.0
        for batch in batches(examples, tokens=self._batch_tokens, seed=0, epoch=0, beside=self._before):
            try:
                total += await self._blocks.step(partial(self._forward_loss, batch))
            except NotFinite:
                return math.nan
        return total / sum(example.answer_tokens for example in examples)

    async def save(self) -> None:
        """Write a checkpoint, with the adapter as PEFT reads it.

        Raises:
            OutOfResources: the disk is full.
            OSError: it cannot be written.
        """
        state = TuningState(self._taken, self._identity(), tuple(self._history), tuple(self._evaluations))
        save = partial(
            checkpoint.save,
            self._folder,
            self.adapter,
            self.optimizer,
            state,
            base=self._local.digest,
            base_name=self._local.name,
        )
        await trio.to_thread.run_sync(save)

    def close(self) -> None:
        """Let its thread end. Nothing of it may be asked for after that."""
        self._thread.close()

    async def _timed(self, step: Sequence[list[Example]]) -> TuningStep:
        """The next step of the optimizer, and what it came to."""
        began = trio.current_time()
        loss = await self._step(step, self._rate(self._taken))
        took = trio.current_time() - began
        self._taken += 1
        self._history.append((self._taken, loss))
        tokens = sum(len(example.token_ids) for batch in step for example in batch)
        return TuningStep(
            self._taken,
            max(self._taken, self.steps),
            loss,
            tokens / max(took, 1e-9),
            skipped=self._skipped,
            replaced=self._blocks.replaced,
        )

    async def _step(self, step: Sequence[list[Example]], rate: float) -> float:
        """One step of the optimizer; its loss, which is not applied where it is not finite."""
        loss = await self._add_gradients(step)
        if loss is None:
            return math.nan
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss

    async def _add_gradients(self, step: Sequence[list[Example]]) -> float | None:
        """The loss of a step, and its gradients, clipped; ``None`` where one of them is not finite.

        Raises:
            StepFailed: they were not in several steps one after another.
        """
        learnt = sum(example.answer_tokens for batch in step for example in batch)
        self.optimizer.zero_grad()
        total = 0.0
        for batch in step:
            try:
                total += await self._blocks.step(partial(self._learn, batch, 1 / learnt))
            except NotFinite:
                total = math.nan
                break
        loss = total / learnt
        gradients = [half.grad for half in self.adapter.parameters if half.grad is not None]
        if not math.isfinite(loss) or not all(bool(grad.isfinite().all()) for grad in gradients):
            self._skipped += 1
            self._bad += 1
            if self._bad >= self._options.most_bad:
                raise StepFailed(
                    f"the loss was NaN or infinite in {self._bad} steps one after another",
                    check="lower --rate, or look for odd examples in the data",
                )
            return None
        self._bad = 0
        strength, begun = self._anchor
        for half, began in zip(self.adapter.parameters, begun, strict=False):
            term = torch.from_numpy(proximal_gradient(half.detach().numpy(), began.numpy(), strength))
            half.grad = term if half.grad is None else half.grad + term
        if self._options.clip:
            torch.nn.utils.clip_grad_norm_(self.adapter.parameters, self._options.clip)
        return loss

    async def _learn(self, batch: list[Example], share: float) -> float:
        """The sum of the losses of a batch, whose gradients are added to the adapter's."""
        passed, out = await self._forward(batch)
        loss, gradients = await self._thread.run(partial(self._ends.gradients, batch, out, share))
        if math.isfinite(loss):
            # Added when all hops have answered: a step that begins again has added nothing.
            found = await self._blocks.backward(passed, gradients)
            for span, factors in found.factors:
                self.adapter.add_gradients(span, factors)
            if (rows := self.adapter.rows) is not None:
                await self._thread.run(partial(self._ends.pull_back, rows, passed.lengths, found.entered))
        return loss

    async def _forward_loss(self, batch: list[Example]) -> float:
        _, out = await self._forward(batch)
        return await self._thread.run(partial(self._ends.loss, batch, out))

    async def _forward(self, batch: list[Example]) -> tuple[Passed, Floats]:
        """A batch through all blocks, and what comes out."""
        await self._thread.run(partial(self._ends.put_before, self.adapter.rows))
        hidden = await self._thread.run(partial(self._ends.embed, batch))
        return await self._blocks.forward(hidden, self._ends.lengths(example_inputs(batch)))

    def _rate(self, step: int) -> float:
        return self._options.rate * min(1.0, (step + 1) / max(1, self._options.warmup))

    def _check_lengths(self, what: str, examples: Sequence[Example]) -> None:
        """Raises UsageError: an example is longer than a question may be."""
        most = self._blocks.most_rows - self._before
        for example in examples:
            if len(example.token_ids) > most + 1:  # its last token is not sent
                raise UsageError(
                    f"{what}, line {example.line}: an example of {len(example.token_ids)} tokens, and "
                    f"hidden states of {most} fit into a message beside a block of the adapter",
                    check="lower --longest, or choose a lower rank",
                )

    def _planned(self) -> list[list[list[Example]]]:
        """The batches of each step."""
        options, found = self._options, list[list[list[Example]]]()
        for epoch in range(options.epochs):
            seed, tokens = options.seed, self._batch_tokens
            made = batches(self._examples, tokens=tokens, seed=seed, epoch=epoch, beside=self._before)
            found += [made[at : at + options.accumulate] for at in range(0, len(made), options.accumulate)]
        return found[: options.steps] if options.steps else found

    def _identity(self) -> dict[str, Any]:
        """What decides the run's numbers."""
        told = asdict(self._options) | {"layers": list(self.adapter.layer_names)}
        by_prompt = self._options.method == "prompt"
        others = ("rank", "alpha", "layers") if by_prompt else ("method", "prompt_tokens")
        for name in ("save_every", "evaluate_every", "most_bad", *others):
            del told[name]
        seen = sha256(repr([(e.token_ids, e.learnt) for e in self._examples]).encode())
        return told | {"model": self._local.digest, "data": seen.hexdigest()}
