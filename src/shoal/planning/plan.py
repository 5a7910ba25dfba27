"""What a set of machines would reach with a model, and which blocks to put where. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shoal.planning.assign import SLACK, place
from shoal.planning.pipeline import Load, Ring, Stage
from shoal.planning.roofline import Bound, Estimate, Machine, SpanCost, hop_time, step_time, together

MOST_GROUPS = 64
PROMPT = 512
"""Tokens of the prompt whose time is told; fewer where sessions are shorter."""


@dataclass(frozen=True, slots=True)
class Speed:
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
class Prefill:
    """What a prompt takes."""

    tokens: int
    rate: float
    """Tokens in a second."""
    first_token_s: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the blocks go, and what comes of it."""

    stages: tuple[Stage, ...]
    one: Speed
    """With one session."""
    many: Speed
    """With all of them."""
    prefill: Prefill
    kv_tokens: tuple[float, ...]
    """Tokens of KV that each stage has room for; infinite where states do not grow."""

    @property
    def capacity(self) -> float:
        """Tokens of KV of all sessions together: what the fullest stage has room for."""
        return min(self.kv_tokens)


def make_plan(
    machines: Sequence[Machine], cost: SpanCost, load: Load, piece: Callable[[int, int], int]
) -> Plan:
    """The best plan for all of the sessions, over several numbers of groups.

    Args:
        machines: the first has the client, and with it the ends.
        cost: of the whole model.
        piece: tokens of each piece of a prompt, by the prompt's tokens and the number of stages.

    Raises:
        OutOfResources: the model does not fit; says how much memory is lacking.
    """
    rings = [Ring(machines, cost, load, groups) for groups in _group_counts(load.sessions, len(machines))]
    placed = [(ring, place(ring)) for ring in rings]
    # Of rounds that are as long as each other the first is taken: it has the largest batches.
    ring, stages = min(placed, key=lambda found: found[0].round_s(found[1]))
    return Plan(
        stages,
        one=_speed(Ring(machines, cost, replace(load, sessions=1), 1), stages),
        many=_speed(ring, stages),
        prefill=_prefill(ring, stages, piece),
        kv_tokens=tuple(_kv_tokens(ring, stage) for stage in stages),
    )


def _group_counts(sessions: int, machines: int) -> list[int]:
    """Powers of two, and as many as there are machines; more than twice that only share the waiting."""
    most = min(sessions, 2 * machines, MOST_GROUPS)
    counts = {1 << power for power in range(most.bit_length())} | {machines, machines + 1, most}
    return sorted(count for count in counts if count <= most)


def _speed(ring: Ring, stages: Sequence[Stage]) -> Speed:
    sessions, rate = ring.load.sessions, ring.load.sessions / ring.round_s(stages)
    stage = max(stages, key=ring.busy_s)
    if ring.groups == 1 or ring.way_round(stages) > ring.groups * ring.busiest(stages) * SLACK:
        return Speed(sessions, ring.groups, rate, _bound_of_way(ring, stages), None)
    if ring.busy_s(stage) <= ring.head.seconds:
        return Speed(sessions, ring.groups, rate, ring.head.bound, 0)
    if ring.link_s(stage) >= ring.busy_s(stage):
        return Speed(sessions, ring.groups, rate, "network", stage.machine)
    own = [ring.head] if stage.machine == 0 else []
    return Speed(sessions, ring.groups, rate, together([*own, _computing(ring, stage)]).bound, stage.machine)


def _bound_of_way(ring: Ring, stages: Sequence[Stage]) -> Bound:
    ways = sum(ring.way_s(stage.machine, stage.span.start, stage.span.end) for stage in stages)
    computing = [_computing(ring, stage) for stage in stages]
    return together([ring.head, Estimate(ways, "network"), *computing]).bound


def _computing(ring: Ring, stage: Stage) -> Estimate:
    part = ring.cost.part(stage.span)
    return step_time(ring.machines[stage.machine], part, ring.batch, ring.load.context)


def _prefill(ring: Ring, stages: Sequence[Stage], piece: Callable[[int, int], int]) -> Prefill:
    """A prompt goes round in pieces: a stage begins one when it has come, and when the one before is done."""
    tokens = min(PROMPT, ring.load.context)
    size = piece(tokens, len(stages))
    done = [0.0] * len(stages)
    spent: list[Estimate] = []
    arrived = 0.0
    for at in range(0, tokens, size):
        rows = min(size, tokens - at)
        arrived = 0.0
        for number, stage in enumerate(stages):
            machine = ring.machines[stage.machine]
            computing = step_time(machine, ring.cost.part(stage.span), rows, at, sessions=1)
            way = _way(ring, stages, number, rows)
            done[number] = max(done[number], arrived + way.seconds) + computing.seconds
            arrived = done[number]
            spent += [computing, way]
    back = _way(ring, stages, len(stages), 1)
    head = step_time(ring.machines[0], SpanCost((), ring.cost.hidden_size, ring.cost.head), 1, 0)
    first = arrived + back.seconds + head.seconds
    return Prefill(tokens, tokens / first, first, together([*spent, back, head]).bound)


def _way(ring: Ring, stages: Sequence[Stage], number: int, rows: int) -> Estimate:
    """The way to stage ``number`` from the one before it; from and to the client at the ends."""
    here = stages[number - 1].machine if number else 0
    there = stages[number].machine if number < len(stages) else 0
    if here == there:
        return Estimate(0.0, "network")
    return hop_time(ring.machines[here], rows, ring.load.row_bytes)


def _kv_tokens(ring: Ring, stage: Stage) -> float:
    """Tokens for which a stage has room beside its weights and what its sessions hold in any case."""
    blocks = ring.cost.part(stage.span).blocks
    growing = sum(block.kv_bytes for block in blocks if block.paged or not block.window)
    held = sum(block.kv_held(ring.load.context) for block in blocks) - growing * ring.load.context
    room = ring.room(stage.machine) - sum(block.bytes for block in blocks) - ring.load.sessions * held
    return math.floor(room / growing) if growing else math.inf
