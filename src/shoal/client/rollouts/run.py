"""Makes the samples: as many sessions at once as the nodes take, each written when it is complete."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import trio

from shoal.client.audits.protection import Protection
from shoal.client.generate import FinishReason, generate
from shoal.client.receipts.pull import AnswerReceipts, pull_receipts
from shoal.client.recommended import answer_room
from shoal.client.rollouts.pace import (
    MOST_AT_ONCE,
    awaited_sessions,
    fitting_sessions,
    may_go_on,
    pause_s,
)
from shoal.client.rollouts.prompts import RolloutPrompt
from shoal.client.rollouts.samples import RolloutSample, SampleFile
from shoal.client.rollouts.todo import PromptSamples, SamplesToMake
from shoal.client.sampling import Sampling, sample_seed
from shoal.client.session import Session
from shoal.errors import (
    Busy,
    ChannelClosed,
    DeadlineExceeded,
    NoCoverage,
    ShoalError,
    UsageError,
)
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.swarm.announcement import Announcement
from shoal.tasks import one_error
from shoal.whole_file import write_whole

LOOK_EVERY_S = 0.5
GROW_EVERY_S = 5.0
"""After a node was full, one session more is tried each time that so long has passed."""
TRIES = 3
"""Of a sample whose nodes have failed; where they are full or gone it is tried for as long as
``RolloutOptions.patience_s`` says."""
MOST_REST_S = 600.0
"""For so long a sample rests at the most, all its pauses together, however many answers are waited for: what
nodes say of that is their word alone."""
AGAIN = (Busy, NoCoverage, ChannelClosed, DeadlineExceeded)
"""What time may heal."""


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutOptions:
    """What is made of each prompt. Raises UsageError: an option that cannot be."""

    samples: int = 16
    """Of each prompt."""
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    """Its seed is none: each sample has its own."""
    stop: tuple[str, ...] = ()
    seed: int = 0
    """From which each sample's seed follows, with its place."""
    at_once: int = 0
    """Sessions; 0: as many as the nodes take, 64 at most."""
    receipts: bool = False
    """Have the hops sign each sample; what they sign goes into files beside the samples."""
    patience_s: float = 600.0
    """How long nodes that are full or gone are waited for before the run ends with what they say."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("samples", 1, 1 << 20),
            ("max_tokens", 1, 1 << 30),
            ("at_once", 0, MOST_AT_ONCE),
            ("patience_s", 0, math.inf),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"{name} is {value}", check=f"choose a number from {least} to {most}")
        if self.sampling.seed is not None:
            raise UsageError("a seed of the sampling would be that of each sample", check="give seed itself")

    @property
    def scored(self) -> Sampling:
        """The sampling, which also says how likely each token was."""
        return dataclasses.replace(self.sampling, top_logprobs=0)


@dataclass(frozen=True, slots=True)
class RolloutsProgress:
    """How far a run has come."""

    made: int
    """Samples that are in the file, those of earlier runs too."""
    samples: int
    """Of the whole run."""
    tokens: int
    """That this run has generated and written."""
    seconds: float
    at_once: int
    """Sessions now."""
    resting: bool
    """Whether all but one rest, because somebody waits for an answer."""

    @property
    def tokens_s(self) -> float:
        """Tokens in a second."""
        return self.tokens / max(self.seconds, 1e-9)


RolloutsTold = Callable[[RolloutsProgress], None]


class RolloutSwarm(Protocol):
    """What a run needs of a swarm."""

    def open_session(self, tokens: int) -> AbstractAsyncContextManager[Session]:
        """A session in the background."""
        ...

    def serving(self) -> Sequence[Announcement]:
        """What the nodes of the model say of themselves now."""
        ...

    async def protect(
        self, session: Session, prompt: Sequence[int], said: Sequence[int], sampling: Sampling, reused: int
    ) -> tuple[AnswerReceipts | None, Protection]:
        """What is set for answers."""
        ...


class Rollouts:
    """One run. ``file`` is its own until it is over."""

    def __init__(
        self,
        swarm: RolloutSwarm,
        local: LocalModel,
        codec: TextCodec | None,
        prompts: Sequence[RolloutPrompt],
        file: SampleFile,
        options: RolloutOptions,
        told: RolloutsTold,
    ) -> None:
        self._swarm, self._local, self._codec = swarm, local, codec
        self._prompts, self._file, self._options, self._told = prompts, file, options, told
        fields = dataclasses.asdict(options.sampling)
        del fields["seed"], fields["top_logprobs"]
        fields["logit_bias"] = {str(token): bias for token, bias in options.sampling.logit_bias.items()}
        self._run: dict[str, Any] = {
            "digest": str(local.digest),
            "adapter": local.shape.adapter or (local.soft_prompt.digest if local.soft_prompt else None),
            "sampling": fields,
            "max_tokens": options.max_tokens,
            "stop": list(options.stop),
        }
        self._samples = len(prompts) * options.samples
        longest = max((len(prompt.token_ids) for prompt in prompts), default=0) + options.max_tokens
        self._longest = min(longest, local.shape.context)
        self._places: set[int] = set()
        self._open: dict[int, Session] = {}  # by their places
        self._limit = options.at_once or MOST_AT_ONCE
        self._awaited = 0
        self._looked = trio.Event()
        self._unwritten: list[RolloutSample] = []
        self._writing = trio.Lock()
        self._made = self._tokens = self._failures = 0
        self._tries: Counter[tuple[int, int]] = Counter()
        self._began = self._succeeded = self._grew = self._not_before = 0.0

    async def run(self) -> RolloutsProgress:
        """Make all that is not in the file. Whatever it ends with, what is complete is there.

        Raises:
            UsageError: the file holds something else.
            NoCoverage, Busy: nodes were gone or full for ``patience_s``.
            ShoalError: a sample has failed several times.
            OSError: samples cannot be written.
        """
        self._began = self._succeeded = trio.current_time()
        made = partial(self._file.made, self._prompts, self._run, self._options.seed)
        there = await trio.to_thread.run_sync(made)
        lines = {prompt.line for prompt in self._prompts}
        self._made = sum(line in lines and n < self._options.samples for line, n in there)
        todo = SamplesToMake(self._prompts, self._options.samples, there)
        with one_error():
            async with trio.open_nursery() as nursery:
                while todo.left or self._places:
                    self._look(todo, nursery)
                    with trio.move_on_after(LOOK_EVERY_S):
                        await self._looked.wait()
        return self._progress()

    def _look(self, todo: SamplesToMake, nursery: trio.Nursery) -> None:
        """Begin as many sessions as there may be."""
        now, announced = trio.current_time(), self._swarm.serving()
        hops = {hop.address.peer for session in self._open.values() for hop in session.ring.route}
        self._awaited = awaited_sessions(announced, hops)
        if now - self._grew > GROW_EVERY_S and now >= self._not_before:
            self._limit, self._grew = min(self._limit + 1, self._options.at_once or MOST_AT_ONCE), now
        self._looked.set()
        self._looked = trio.Event()
        wanted = min(self._limit, self._options.at_once or self._fitting(announced))
        if self._awaited or not self._open:  # whether anybody waits is known once the first is open
            wanted = 1
        while todo.left and len(self._places) < wanted and now >= self._not_before:
            samples = todo.take()
            # Taken here: sessions for samples that others make would only fill nodes' places.
            if samples is None or (first := samples.take()) is None:
                return
            place = next(n for n in range(len(self._places) + 1) if n not in self._places)
            self._places.add(place)
            nursery.start_soon(self._work, todo, samples, first, place)

    def _fitting(self, announced: Sequence[Announcement]) -> int:
        serving = [one.served for one in announced if one.served is not None]
        return fitting_sessions(serving, self._local.shape.n_blocks, self._longest)

    async def _work(self, todo: SamplesToMake, samples: PromptSamples, first: int, place: int) -> None:
        """Make ``first`` and the samples of a prompt that nobody else has begun, in one session."""
        sample: int | None = first
        opened = False
        try:
            prompt = samples.prompt
            limit = self._tokens_of(prompt)
            async with self._swarm.open_session(len(prompt.token_ids) + limit) as session:
                opened = True
                self._open[place] = session
                self._looked.set()
                while sample is not None:
                    made = await self._sample(session, prompt, sample, limit, place)
                    await self._write(made)
                    sample = None
                    sample = samples.take() if place < self._limit else None
        except ShoalError as error:
            self._note_failure(error, samples.prompt, sample if opened else None)
        finally:
            if sample is not None:
                todo.put_back(samples, sample)
            self._places.discard(place)
            self._open.pop(place, None)
            self._looked.set()

    def _note_failure(self, error: ShoalError, prompt: RolloutPrompt, sample: int | None) -> None:
        """Leave the swarm alone for a while. Raises ``error`` where that will not help."""
        now = trio.current_time()
        log.info("a session for prompt %d has ended: %s", prompt.line, error.message)
        key = (prompt.line, -1 if sample is None else sample)
        if isinstance(error, AGAIN):
            # While other sessions get on, nodes are neither gone nor full for ever.
            given_up = len(self._places) == 1 and now - self._succeeded > self._options.patience_s
        else:
            self._tries[key] += 1
            given_up = self._tries[key] >= TRIES or isinstance(error, UsageError)
        if given_up:
            raise error
        self._limit, self._grew = max(1, min(self._limit, len(self._places) - 1)), now
        if len(self._places) == 1:  # nobody else gets on either
            self._failures += 1
            asked_s = error.retry_after_s if isinstance(error, Busy) else 0.0
            self._not_before = now + pause_s(self._failures, asked_s)

    async def _sample(
        self, session: Session, prompt: RolloutPrompt, sample: int, limit: int, place: int
    ) -> RolloutSample:
        seed = sample_seed(self._options.seed, prompt.line, sample)
        sampling = dataclasses.replace(self._options.scored, seed=seed)
        whole = session.prompt_of(prompt.token_ids)
        reused = session.reusable(whole)
        text, tokens, logprobs = "", list[int](), list[float]()
        reason: FinishReason = "length"
        may_rest_s = MOST_REST_S
        deltas = generate(
            session,
            whole,
            self._codec.detokenizer() if self._codec else None,
            sampling=sampling,
            max_tokens=limit,
            stop=self._options.stop,
            end_tokens=self._local.end_tokens,
            speculate=False,  # nodes that are busy with many sessions have no time for guesses
        )
        async with aclosing(deltas):
            async for delta in deltas:
                text += delta.text
                tokens += delta.token_ids
                if delta.score is not None:
                    logprobs.append(delta.score.logprob)
                reason = delta.finish_reason or reason
                if delta.finish_reason is None:
                    may_rest_s -= await self._rest(place, may_rest_s)
        receipts, protection = await self._swarm.protect(session, whole, tokens, sampling, reused)
        if self._options.receipts and receipts is None:
            receipts = await pull_receipts(session, whole, tokens, sampling)
        faults = [] if receipts is None else [fault.what for fault in receipts.faults]
        return RolloutSample(
            prompt=prompt.line,
            id=prompt.id,
            sample=sample,
            seed=seed,
            model=self._local.name,
            numerics=str(session.ring.numerics),
            prompt_token_ids=list(prompt.token_ids),
            token_ids=tokens,
            logprobs=logprobs,
            text=text,
            finish_reason=reason,
            protection=protection.level,
            faults=list(dict.fromkeys([*protection.faults, *faults])),
            receipts=None if receipts is None else await self._keep(receipts, prompt, sample),
            **self._run,
        )

    async def _rest(self, place: int, most_s: float) -> float:
        """Wait while somebody waits for an answer and another sample goes on; for how many seconds it was."""
        began = trio.current_time()
        with trio.move_on_at(began + most_s):
            while not may_go_on(place, tuple(self._places), self._awaited):
                await self._looked.wait()
        return trio.current_time() - began

    async def _keep(self, receipts: AnswerReceipts, prompt: RolloutPrompt, sample: int) -> str:
        folder = self._file.path.with_name(f"{self._file.path.name}.receipts")
        path = folder / f"{prompt.line}-{sample}.json"
        write = partial(write_whole, path, receipts.kept.encoded(), replace=True)
        await trio.to_thread.run_sync(write)
        return f"{folder.name}/{path.name}"

    async def _write(self, sample: RolloutSample) -> None:
        """Have a sample written, with all others that wait for it."""
        self._unwritten.append(sample)
        async with self._writing:
            samples, self._unwritten = self._unwritten, []
            if samples:
                await trio.to_thread.run_sync(self._file.add, samples)
                self._made += len(samples)
                self._tokens += sum(len(one.token_ids) for one in samples)
                self._succeeded, self._failures = trio.current_time(), 0
                self._told(self._progress())

    def _tokens_of(self, prompt: RolloutPrompt) -> int:
        return min(self._options.max_tokens, answer_room(self._local.shape, len(prompt.token_ids)))

    def _progress(self) -> RolloutsProgress:
        seconds = trio.current_time() - self._began
        resting = bool(self._awaited) and len(self._places) > 1
        return RolloutsProgress(self._made, self._samples, self._tokens, seconds, len(self._places), resting)
