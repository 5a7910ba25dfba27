"""Starts a federated run, or joins one, with a tuner that has this member's own data."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import trio

from shoal.client.federated.look import look_at_run
from shoal.client.federated.participant import PATIENCE_S, Participant, taking_part
from shoal.client.federated.run_folder import RunFolder, read_run_terms
from shoal.client.federated.tuned import TunerLearner
from shoal.client.swarm import Swarm
from shoal.client.tuning.open import TuningData, open_tuner
from shoal.client.tuning.tuner import Tuner, TuningOptions
from shoal.errors import DigestMismatch, NoCoverage, UnknownModel, UsageError
from shoal.models.store.local_model import LocalModel
from shoal.training.federated.compress import Compression
from shoal.training.federated.demo.direction import DECAY, KEPT, DemoTerms
from shoal.training.federated.means import MeanRule
from shoal.training.federated.outer import SharedState
from shoal.training.federated.statements import TermsStatement, sign_statement
from shoal.training.federated.terms import FederatedTerms, adam_radius, run_of
from shoal.wire.federating import MAX_SIZE

STEPS = 20
"""Local steps of a round, if nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedOptions:
    """What the starter of a run chooses for all."""

    rounds: int = 10
    steps: int = 0
    """Local steps of a round; 0: 20 of them, and by DeMo, where a round is a step, one."""
    rule: MeanRule = "mean"
    radius: float = 0.0
    """The norm to which updates are clipped; 0: that of AdamW's steps if all go one way. Not by DeMo."""
    outer_rate: float = 1.0
    outer_momentum: float = 0.0
    proximal: float = 0.0
    least: int = 2
    gather_s: float = 60.0
    part_s: float = 60.0
    secret: bool = False
    """Whether updates are added up without anybody seeing one."""
    noise: float = 0.0
    """Deviation of the noise in each number of a member's update, in ``radius``; 0: none."""
    compress: Compression = "none"
    """How updates travel."""
    decay: float | None = None
    """DeMo: of each member's momentum, in a step; by itself 0.9."""
    kept: int | None = None
    """DeMo: coefficients of each chunk of 4,096 numbers that are sent; by itself 32."""
    name: str = ""

    def __post_init__(self) -> None:
        """Raises UsageError: an option that would have no effect."""
        if self.compress == "demo" and self.radius:
            raise UsageError(
                "--compress demo and --radius do not go together: what members send is compared with that of "
                "the median member, and no norm is clipped",
                check="leave one of them out",
            )
        if self.compress != "demo" and (self.kept is not None or self.decay is not None):
            option = "--decay" if self.kept is None else "--kept"
            raise UsageError(
                f"{option} is of DeMo, and updates travel by {self.compress!r} here",
                check=f"add --compress demo, or leave {option} out",
            )


@dataclass(frozen=True, slots=True)
class FederatedRun:
    """A run that this machine takes part in. ``async for report in run.participant.run()`` takes it on."""

    code: str
    """By which others join."""
    terms: FederatedTerms
    participant: Participant
    tuner: Tuner


@asynccontextmanager
async def start_run(
    swarm: Swarm,
    model: str,
    data: TuningData,
    options: TuningOptions,
    chosen: FederatedOptions,
    folder: RunFolder,
    *,
    own_blocks: bool = False,
    patience_s: float = PATIENCE_S,
) -> AsyncGenerator[FederatedRun]:
    """A run with these terms, or the one that ``folder`` has, in which this machine takes part until the
    block ends. ``swarm`` should listen, with the folder's identity.

    Args:
        own_blocks: as :func:`open_tuner` has it.
        patience_s: how long too few members are waited for.

    Raises:
        UsageError: the data or an option cannot be, or the folder has a run with other terms.
        ShoalError: as :func:`open_tuner`.
    """
    tuner, learner = await _open(swarm, model, data, options, folder, own_blocks=own_blocks)
    try:
        local = await swarm.resolve(model)
        terms = _terms(local, options, chosen, learner)
        raw = await trio.to_thread.run_sync(folder.terms)
        if raw is None:
            raw = sign_statement(TermsStatement(bytes(32), swarm.network.peer, terms), swarm.network.sign)
            await trio.to_thread.run_sync(folder.keep_terms, raw)
        elif (kept := read_run_terms(raw)) != terms:
            other = [name for name in terms.__struct_fields__ if getattr(kept, name) != getattr(terms, name)]
            raise UsageError(
                f"{folder.path} has a run with other terms: {', '.join(other)} differ",
                check="name another folder with --out, or give what that run was given",
            )
        async with _taking_part(swarm, terms, raw, learner, folder, patience_s) as participant:
            yield FederatedRun(run_of(raw).hex(), terms, participant, tuner)
    finally:
        tuner.close()


@asynccontextmanager
async def join_run(
    swarm: Swarm,
    run: bytes,
    data: TuningData,
    options: TuningOptions,
    folder: RunFolder,
    *,
    model: str = "",
    own_blocks: bool = False,
    patience_s: float = PATIENCE_S,
    look: Callable[[FederatedTerms], None] | None = None,
) -> AsyncGenerator[FederatedRun]:
    """Take part in the run of this hash until the block ends. Rank, alpha, layers and seed are the run's,
    whatever the options say; by DeMo rate and warm-up, too.

    Args:
        model: its name here, where it is not to be found by its digest or the starter's name for it.
        look: is given the terms before anybody hears of this member; what it raises ends it.
        own_blocks, patience_s: as :func:`start_run` has them.

    Raises:
        NotRunning: nobody who takes part is found.
        DigestMismatch: another model goes by its name here.
        UsageError, ShoalError: as :func:`start_run`.
    """
    raw = await trio.to_thread.run_sync(folder.terms)
    if raw is None or run_of(raw) != run:
        raw = (await look_at_run(swarm.network, run, listen_s=0.0)).raw
    terms = read_run_terms(raw)
    if look is not None:
        look(terms)
    await trio.to_thread.run_sync(folder.keep_terms, raw)
    model, local = await resolve_model(swarm, terms, model)
    if local.digest != terms.digest:
        raise DigestMismatch(
            f"the run tunes {terms.digest[:23]}…, and {model} is {local.digest[:23]}… here",
            check="fetch the version that the others have, or name it with --model",
        )
    taken = replace(options, rank=terms.rank, alpha=terms.alpha, layers=terms.layers, seed=terms.seed)
    tuner, learner = await _open(swarm, model, data, taken, folder, own_blocks=own_blocks)
    try:
        if learner.layout.digest != terms.layout:
            raise DigestMismatch("the adapter of the run has other matrices than this model's here")
        async with _taking_part(swarm, terms, raw, learner, folder, patience_s) as participant:
            yield FederatedRun(run.hex(), terms, participant, tuner)
    finally:
        tuner.close()


async def resolve_model(swarm: Swarm, terms: FederatedTerms, named: str = "") -> tuple[str, LocalModel]:
    """A run's model, and by what it was found here.

    Args:
        named: what it is called here. Where nothing is said, its digest is tried, which is the same
            everywhere, and the starter's name for it.

    Raises:
        UnknownModel, ShoalError: as :meth:`Swarm.resolve`.
    """
    if not named:
        here = await trio.to_thread.run_sync(swarm.store.find, terms.digest)
        named = terms.digest if here is not None else terms.model
    try:
        return named, await swarm.resolve(named)
    except UnknownModel:
        if named != terms.model:
            raise
        with suppress(NoCoverage, UnknownModel):
            return terms.digest, await swarm.resolve(terms.digest)
        raise


async def _open(
    swarm: Swarm, model: str, data: TuningData, options: TuningOptions, folder: RunFolder, *, own_blocks: bool
) -> tuple[Tuner, TunerLearner]:
    tuner = await open_tuner(swarm, model, data, options, folder.adapter, own_blocks=own_blocks)
    try:
        if not tuner.examples:
            raise UsageError("there is nothing to learn from", check="give at least one example")
        learner = TunerLearner(tuner, list(tuner.examples), options)
        if learner.layout.size > MAX_SIZE:
            raise UsageError(
                f"an adapter of {learner.layout.size} numbers, and {MAX_SIZE} are the most of a run",
                check="choose a lower rank, or fewer layers",
            )
        return tuner, learner
    except BaseException:
        tuner.close()
        raise


def _terms(
    local: LocalModel, options: TuningOptions, chosen: FederatedOptions, learner: TunerLearner
) -> FederatedTerms:
    size, steps, demo = learner.layout.size, chosen.steps or STEPS, None
    if chosen.compress == "demo":
        decay = DECAY if chosen.decay is None else chosen.decay
        kept = KEPT if chosen.kept is None else chosen.kept
        demo = DemoTerms(options.rate, options.warmup, decay, kept)
        steps = chosen.steps or 1
    terms = FederatedTerms(
        model=local.name,  # not as it was typed: where a folder is here is nobody's business
        digest=local.digest,
        rank=options.rank,
        alpha=options.alpha,
        layers=options.layers,
        seed=options.seed,
        size=size,
        layout=learner.layout.digest,
        rounds=chosen.rounds,
        steps=steps,
        rule=chosen.rule,
        radius=chosen.radius or adam_radius(options.rate, steps, size),
        outer_rate=chosen.outer_rate,
        outer_momentum=chosen.outer_momentum,
        proximal=chosen.proximal,
        least=chosen.least,
        gather_s=chosen.gather_s,
        part_s=chosen.part_s,
        secret=chosen.secret,
        noise=chosen.noise,
        name=chosen.name,
        compress=chosen.compress,
        demo=demo,
    )
    terms.check()
    return terms


@asynccontextmanager
async def _taking_part(
    swarm: Swarm,
    terms: FederatedTerms,
    raw: bytes,
    learner: TunerLearner,
    folder: RunFolder,
    patience_s: float,
) -> AsyncGenerator[Participant]:
    with folder.held():
        async with _going_on(swarm, terms, raw, learner, folder, patience_s) as participant:
            yield participant


@asynccontextmanager
async def _going_on(
    swarm: Swarm,
    terms: FederatedTerms,
    raw: bytes,
    learner: TunerLearner,
    folder: RunFolder,
    patience_s: float,
) -> AsyncGenerator[Participant]:
    """From what the folder holds."""
    await learner.tuner.resume()
    kept = await trio.to_thread.run_sync(folder.state, terms.size)
    round, state = kept or (0, None)

    async def save(number: int, reached: SharedState) -> None:
        learner.put(reached.weights)
        await learner.tuner.save()
        if participant.momentum is not None:
            await trio.to_thread.run_sync(folder.keep_momentum, participant.momentum.copy())
        await trio.to_thread.run_sync(partial(folder.keep_state, number, reached))

    async def keep_spent(count: int) -> None:
        await trio.to_thread.run_sync(folder.keep_spent, count)

    participant = Participant(
        swarm.network,
        swarm.member.clock,
        terms,
        raw,
        learner,
        round=round,
        state=state,
        momentum=await trio.to_thread.run_sync(folder.momentum, terms.size) if terms.demo else None,
        save=save,
        spent=await trio.to_thread.run_sync(folder.spent),
        keep_spent=keep_spent,
        patience_s=patience_s,
    )
    async with taking_part(participant):
        yield participant
