"""What a set of machines would reach with a model, and which blocks to put where. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shoal.planning.assign import MOST_WORK, SLACK, place_best
from shoal.planning.layout import PipelineStage
from shoal.planning.pipeline import Pipeline, Workload
from shoal.planning.roofline import Bound, Estimate, Machine, SpanCost, hop_time, step_time, together

MOST_GROUPS = 64
PROMPT = 512
"""Tokens of the prompt whose time is told; fewer where sessions are shorter."""


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """What decoding reaches."""

    sessions: int
    groups: int
    """On their way round the ring at the same time."""
    rate: float
    """Tokens in a second, over all sessions."""
    bound: Bound
    busiest: int | None
    """The machine that all wait for; ``None``: none is always busy, the way round is what takes the time."""


@dataclass(frozen=True, slots=True)
class PrefillSpeed:
    """What a prompt takes."""

    tokens: int
    rate: float
    """Tokens in a second."""
    first_token_s: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the blocks go, and what comes of it."""

    stages: tuple[PipelineStage, ...]
    one: DecodeSpeed
    """With one session."""
    many: DecodeSpeed
    """With all of them."""
    prefill: PrefillSpeed
    kv_tokens: tuple[float, ...]
    """Tokens of KV that each stage has room for; infinite where states do not grow."""

    @property
    def capacity(self) -> float:
        """Tokens of KV of all sessions together: what the fullest stage has room for."""
        return min(self.kv_tokens)


def make_plan(
    machines: Sequence[Machine],
    cost: SpanCost,
    load: Workload,
    piece: Callable[[int, int], int],
    work: float = MOST_WORK,
) -> Plan:
    """The best plan for all of the sessions, over several numbers of groups.

    Args:
        machines: the first has the client, and with it the ends.
        cost: of the whole model.
        piece: tokens of each piece of a prompt, by the prompt's tokens and the number of stages.
        work: as :data:`shoal.planning.assign.MOST_WORK`.

    Raises:
        OutOfResources: the model does not fit; says how much memory is lacking.
    """
    pipelines = [
        Pipeline(machines, cost, load, groups) for groups in group_counts(load.sessions, len(machines))
    ]
    pipelines[0].check_ends()
    pipeline, stages = place_best(pipelines, work)
    return Plan(
        stages,
        one=_speed(Pipeline(machines, cost, replace(load, sessions=1), 1), stages),
        many=_speed(pipeline, stages),
        prefill=_prefill(pipeline, stages, piece),
        kv_tokens=tuple(_kv_tokens(pipeline, stage) for stage in stages),
    )


def group_counts(sessions: int, machines: int) -> list[int]:
    """Powers of two, and as many as there are machines; more than twice that only share the waiting."""
    most = min(sessions, 2 * machines, MOST_GROUPS)
    counts = {1 << power for power in range(most.bit_length())} | {machines, machines + 1, most}
    return sorted(count for count in counts if count <= most)


def _speed(pipeline: Pipeline, stages: Sequence[PipelineStage]) -> DecodeSpeed:
    sessions, rate = pipeline.load.sessions, pipeline.load.sessions / pipeline.round_s(stages)
    stage = max(stages, key=pipeline.busy_s)
    if (
        pipeline.groups == 1
        or pipeline.way_round(stages) > pipeline.groups * pipeline.busiest(stages) * SLACK
    ):
        return DecodeSpeed(sessions, pipeline.groups, rate, _bound_of_way(pipeline, stages), None)
    if pipeline.busy_s(stage) <= pipeline.head.seconds:
        return DecodeSpeed(sessions, pipeline.groups, rate, pipeline.head.bound, 0)
    if pipeline.link_s(stage) >= pipeline.busy_s(stage):
        return DecodeSpeed(sessions, pipeline.groups, rate, "network", stage.machine)
    own = [pipeline.head] if stage.machine == 0 else []
    return DecodeSpeed(
        sessions, pipeline.groups, rate, together([*own, _computing(pipeline, stage)]).bound, stage.machine
    )


def _bound_of_way(pipeline: Pipeline, stages: Sequence[PipelineStage]) -> Bound:
    ways = sum(map(pipeline.way_s, stages))
    computing = [_computing(pipeline, stage) for stage in stages]
    return together([pipeline.head, Estimate(ways, "network"), *computing]).bound


def _computing(pipeline: Pipeline, stage: PipelineStage) -> Estimate:
    part = pipeline.cost.part(stage.span)
    return step_time(pipeline.machines[stage.machine], part, pipeline.batch, pipeline.load.context)


def _prefill(
    pipeline: Pipeline, stages: Sequence[PipelineStage], piece: Callable[[int, int], int]
) -> PrefillSpeed:
    """A prompt goes round in pieces: a stage begins one when it has come, and when the one before is done."""
    tokens = min(PROMPT, pipeline.load.context)
    size = piece(tokens, len(stages))
    done = [0.0] * len(stages)
    spent: list[Estimate] = []
    arrived = 0.0
    for at in range(0, tokens, size):
        rows = min(size, tokens - at)
        arrived = 0.0
        for number, stage in enumerate(stages):
            machine = pipeline.machines[stage.machine]
            computing = step_time(machine, pipeline.cost.part(stage.span), rows, at, sessions=1)
            way = _way(pipeline, stages, number, rows)
            done[number] = max(done[number], arrived + way.seconds) + computing.seconds
            arrived = done[number]
            spent += [computing, way]
    back = _way(pipeline, stages, len(stages), 1)
    head = step_time(pipeline.machines[0], pipeline.cost.client, tokens, 0, sessions=1)
    first = arrived + back.seconds + head.seconds
    return PrefillSpeed(tokens, tokens / first, first, together([*spent, back, head]).bound)


def _way(pipeline: Pipeline, stages: Sequence[PipelineStage], number: int, rows: int) -> Estimate:
    """The way to stage ``number`` from the one before it; from and to the client at the ends."""
    here = stages[number - 1].machine if number else 0
    there = stages[number].machine if number < len(stages) else 0
    if here == there:
        return Estimate(0.0, "network")
    return hop_time(pipeline.machines[here], rows, pipeline.load.row_bytes)


def _kv_tokens(pipeline: Pipeline, stage: PipelineStage) -> float:
    """Tokens for which a stage has room beside its weights and what its sessions hold in any case."""
    blocks = pipeline.cost.part(stage.span).blocks
    growing = sum(block.kv_bytes for block in blocks if block.paged or not block.window)
    held = sum(block.kv_held(pipeline.load.context) for block in blocks) - growing * pipeline.load.context
    room = pipeline.room(stage.machine) - sum(block.bytes for block in blocks) - pipeline.load.sessions * held
    return math.floor(room / growing) if growing else math.inf
