"""Trains the small model by each way, with as many steps, and tells the bytes and the loss of each."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import msgspec
import numpy as np
import torch
import trio

from shoal import process_environ
from shoal.bench.learning.member import MemberOrder, is_looked_at
from shoal.bench.learning.small_model import EXAMPLES, Book, SmallModel, held_back_loss
from shoal.client.federated.module_learner import ModuleLearner
from shoal.errors import DeadlineExceeded, StepFailed, UsageError
from shoal.executor.thread import ComputeThread
from shoal.local.processes import Process, ended_with_us
from shoal.net.identity import Identity
from shoal.progress import Progress
from shoal.training.federated.demo.direction import DemoTerms
from shoal.training.federated.statements import TermsStatement, sign_statement
from shoal.training.federated.terms import FederatedTerms, adam_radius

UpdateWay = Literal["all-reduce", "demo", "none", "int8"]
WAYS: tuple[UpdateWay, ...] = ("all-reduce", "demo", "none", "int8")
BF16_BYTES = 2
ROUND_WITHIN_S = 120.0
MEMBER = ("-P", "-m", "shoal.bench.learning.member")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningBench:
    """What is measured."""

    members: int = 4
    steps: int = 300
    """Of each member, whatever the way."""
    local_steps: int = 20
    """Of a round of whole updates."""
    rate: float = 3e-3
    """AdamW's."""
    demo_rate: float = 2e-3
    decay: float = 0.9
    kept: int = 32
    warmup: int = 20
    ways: tuple[UpdateWay, ...] = WAYS
    seed: int = 0


@dataclass(frozen=True, slots=True)
class WayLearnt:
    """What one way came to."""

    way: str
    bytes_per_step: float
    """That a member sends, the mean over members and steps."""
    held_back: float
    """The loss at the end, over text that nothing was learnt from."""
    learnt: float
    """The same of the last steps' examples, over all members."""
    curve: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """Step, and the loss over the text that was kept back."""
    less: float = 1.0
    """How many times fewer bytes than all-reduce."""
    above: float = 0.0
    """By how much of it the loss is above that of all-reduce."""


def chosen_ways(names: Sequence[str]) -> tuple[UpdateWay, ...]:
    """Ways by their names, in our order; all where none is named. Raises UsageError: there is no such."""
    if unknown := set(names) - set(WAYS):
        raise UsageError(
            f"there is no way {', '.join(sorted(unknown))}", check=f"name some of: {', '.join(WAYS)}"
        )
    return tuple(way for way in WAYS if not names or way in names)


async def measure_learning(asked: LearningBench, progress: Progress) -> dict[str, Any]:
    """Measure, and return the numbers as ``--json`` shows them.

    Raises:
        UsageError: the steps are no whole rounds of a way that is asked for.
        StepFailed: a loss is NaN or infinite, or members end with different models.
        DeadlineExceeded: a member takes too long for a round.
        ShoalError: a member's process failed; the error is its own.
    """
    _check_rounds(asked)
    size = sum(parameter.numel() for parameter in SmallModel(asked.seed).parameters())
    found: list[WayLearnt] = []
    for way in asked.ways:
        progress(f"training by {way}", 0, asked.steps)
        if way == "all-reduce":
            found.append(await _all_reduce(asked, size, progress))
        else:
            found.append(await _together(asked, way, size, progress))
    full = next((one for one in found if one.way == "all-reduce"), None)
    ways = [asdict(one if full is None else _beside(one, full)) for one in found]
    return {"parameters": size, "members": asked.members, "steps": asked.steps, "ways": ways}


def learning_table(found: dict[str, Any]) -> str:
    """The same for people."""
    rows = [
        f"{found['members']} members, {found['parameters']:,} parameters, {found['steps']} steps of each",
        f"{'way':12}{'kB a step':>12}{'times less':>12}{'loss':>9}{'held back':>11}{'above':>9}",
    ]
    for way in cast("list[dict[str, Any]]", found["ways"]):
        rows.append(
            f"{way['way']:12}{way['bytes_per_step'] / 1000:>12,.1f}{way['less']:>12.1f}{way['learnt']:>9.3f}"
            f"{way['held_back']:>11.3f}{way['above']:>9.1%}"
        )
    return "\n".join(rows)


def _beside(one: WayLearnt, full: WayLearnt) -> WayLearnt:
    less, above = full.bytes_per_step / one.bytes_per_step, one.held_back / full.held_back - 1
    return WayLearnt(one.way, one.bytes_per_step, one.held_back, one.learnt, one.curve, less, above)


async def _all_reduce(asked: LearningBench, size: int, progress: Progress) -> WayLearnt:
    """AdamW by the mean of all members' gradients, in one process: what all-reduce in each step comes to.

    Its bytes are those of a ring, of which each member sends all but its own part, twice, in bf16.
    """
    thread = ComputeThread("shoal-learning")
    model, book, members = SmallModel(asked.seed), Book(), asked.members
    rates = _rates(asked, asked.rate)
    learner = ModuleLearner(
        model,
        lambda turn: (model.loss(book.examples(turn % members, turn // members)), EXAMPLES),
        thread,
        rate_of=lambda step: rates.rate_of(step, asked.steps),
    )

    def step(number: int) -> float:
        """All members in turn, and one step of the optimizer."""
        total, losses = np.zeros(size, np.float32), list[float]()
        for turn in range(number * members, (number + 1) * members):
            losses.append(learner.backward(turn)[1])
            total += learner.gradients()
        learner.put_gradients(total / np.float32(members))
        learner.step(number)
        return fmean(losses)

    curve, losses = list[tuple[int, float]](), list[float]()
    try:
        await thread.run(partial(torch.set_num_threads, 1))
        for number in range(asked.steps):
            losses.append(await thread.run(partial(step, number)))
            if is_looked_at(number + 1, asked.steps):
                curve.append((number + 1, await thread.run(partial(held_back_loss, model, book))))
            progress("training by all-reduce", number + 1, asked.steps)
    finally:
        thread.close()
    sent = 2 * (members - 1) / members * size * BF16_BYTES
    return WayLearnt("all-reduce", sent, curve[-1][1], _last(losses), curve)


async def _together(asked: LearningBench, way: UpdateWay, size: int, progress: Progress) -> WayLearnt:
    """The members as processes of this machine, each with the text's places of its own."""
    terms = _terms(asked, way, size)
    starter = Identity.ephemeral()
    raw = sign_statement(TermsStatement(bytes(32), starter.peer, terms), starter.sign)
    secret, rounds = secrets.token_bytes(32), list[list[dict[str, Any]]]()
    with TemporaryDirectory(prefix="shoal-learning-") as folder:
        async with ended_with_us() as processes:
            first: Any = None
            for index in range(asked.members):
                order = MemberOrder(index, asked.seed, _rates(asked, asked.rate), raw, secret, first)
                process = await _start(order, Path(folder, f"{index}.log"), processes)
                listening = await _event(process, "listening")
                first = first or listening["first"]
            for number in range(terms.rounds):
                rounds.append([await _event(process, "round") for process in processes])
                progress(f"training by {way}", (number + 1) * terms.steps, asked.steps)
            digests = {(await _event(process, "done"))["digest"] for process in processes}
    if len(digests) != 1:
        raise StepFailed("the members end with different models", check="run it again on a quieter machine")
    sent = fmean(said["sent"] for told in rounds for said in told) / terms.steps
    curve = [
        (told[0]["round"] * terms.steps, told[0]["held_back"])
        for told in rounds
        if told[0]["held_back"] is not None
    ]
    losses = [fmean(said["loss"] for said in told) for told in rounds]
    return WayLearnt(way, sent, curve[-1][1], _last(losses), curve)


async def _start(order: MemberOrder, log: Path, processes: list[Process]) -> Process:
    with log.open("ab") as stderr:
        process = await trio.lowlevel.open_process(
            [sys.executable, *MEMBER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=process_environ.child_environ(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
            process_group=0,
        )
    processes.append(Process(process, log))
    assert process.stdin is not None
    await process.stdin.send_all(msgspec.json.encode(order) + b"\n")
    return processes[-1]


async def _event(process: Process, name: str) -> dict[str, Any]:
    with trio.move_on_after(ROUND_WITHIN_S):
        return await process.event(name)
    raise DeadlineExceeded(f"a member said nothing for {ROUND_WITHIN_S:.0f} s", check=process.last_words())


def _check_rounds(asked: LearningBench) -> None:
    """Refuse steps that some ways would make and others not."""
    of_rounds = [way for way in asked.ways if way in ("none", "int8")]
    if of_rounds and asked.steps > asked.local_steps and asked.steps % asked.local_steps:
        raise UsageError(
            f"{asked.steps} steps are no whole rounds of {asked.local_steps} by {' and '.join(of_rounds)}",
            check="set --steps to a multiple of --local-steps",
        )


def _terms(asked: LearningBench, way: UpdateWay, size: int) -> FederatedTerms:
    demo = _rates(asked, asked.demo_rate) if way == "demo" else None
    steps = 1 if demo else min(asked.local_steps, asked.steps)
    terms = FederatedTerms(
        model="small",
        digest="small",
        rank=1,
        alpha=1.0,
        layers=(),
        seed=asked.seed,
        size=size,
        layout=bytes(32),
        rounds=asked.steps // steps,
        steps=steps,
        rule="mean",
        radius=adam_radius(asked.rate, steps, size),
        least=asked.members,
        compress="none" if way == "all-reduce" else way,
        demo=demo,
    )
    terms.check()
    return terms


def _rates(asked: LearningBench, rate: float) -> DemoTerms:
    return DemoTerms(rate, asked.warmup, asked.decay, asked.kept)


def _last(losses: Sequence[float]) -> float:
    """The mean over the last twentieth of the steps."""
    return fmean(losses[-max(1, len(losses) // 20) :])
