"""Who takes part: where, behind what, how fast, and for how long. Pure: a plan in, arrays out.

Each part is drawn by numbers of its own from the plan's seed, so that one that is changed leaves the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.routing.shortest_path import FloatArray, IndexArray
from shoal.testing.sim.scale.plan import CROWD_S, ScalePlan

Flags: TypeAlias = npt.NDArray[np.bool_]

REGIONS = ("Europe", "America, east", "America, west", "Asia", "America, south", "Oceania")
SHARES = (1 / 3, 0.2, 0.14, 0.2167, 0.06, 0.05)
"""Of the machines. The first is the one that vanishes."""
ONE_WAY_MS = (
    (8, 42, 70, 95, 100, 135),
    (42, 8, 32, 95, 60, 100),
    (70, 32, 7, 62, 88, 72),
    (95, 95, 62, 25, 150, 60),
    (100, 60, 88, 150, 18, 160),
    (135, 100, 72, 60, 160, 12),
)
"""Between machines in data centres, by region: about half of the round trips that clouds publish."""
LOST = 0
"""The region that vanishes."""
HOMES = 0.75
PUBLIC, CONE, SYMMETRIC = 0, 1, 2
NAT_SHARES = (0.2, 0.65, 0.15)
"""Of homes: reached by a port that is mapped or IPv6, by punching, or by reversal and relays."""
HONEST, FAST_LIAR, REFUSER, ABSURD = 0, 1, 2, 3
"""What identities are: of the hostile ones a third each claims speed, refuses every session, or announces
blocks that the model does not have."""
LEAVES, CRASHES, VANISHES = 0, 1, 2
"""How a life ends: with a word, with a closed socket, or silently."""
MEDIAN_LIFE_S = 7200.0
LIFE_SIGMA = 1.5
"""Of the logarithm: heavy-tailed, as lives in peer-to-peer networks are (Stutzbach and Rejaie, 2006)."""
BLOCKS = (24, 28, 32, 40, 48)
"""Of the models, in turn."""
POPULAR = 0.5
"""The k-th model has ``(k + 1) ** -POPULAR`` of the nodes of the first."""


@dataclass(frozen=True, slots=True)
class Machines:
    """Arrays of all machines that there will be, in the order in which they come."""

    region: IndexArray
    home: Flags
    nat: IndexArray
    line_s: FloatArray
    """One way from the machine to its region's net."""
    up_bytes_s: FloatArray
    speed: FloatArray
    """Blocks a second, in fact."""
    share: FloatArray
    """Of its model's blocks that fit."""
    model: IndexArray
    kind: IndexArray
    """Honest, or in what way it is not."""
    joins_at: FloatArray
    ends_at: FloatArray
    end: IndexArray
    load_s: FloatArray
    """What it takes to fetch and load a span."""
    crowd: Flags

    def __len__(self) -> int:
        return len(self.region)

    def way_s(self, a: Any, b: Any) -> Any:
        """One way between machines; arrays of numbers of machines, or single ones."""
        return _MATRIX_S[self.region[a], self.region[b]] + self.line_s[a] + self.line_s[b]


_MATRIX_S: FloatArray = np.array(ONE_WAY_MS) / 1e3


def n_blocks_of(model: int) -> int:
    """How many blocks a model has."""
    return BLOCKS[model % len(BLOCKS)]


def make_population(plan: ScalePlan) -> Machines:
    """All machines of a plan: those that are there, those that replace who goes, and the crowd."""
    joins_at, crowd = _joins(plan)
    count = len(joins_at)
    region = _draws(plan, "region").choice(len(REGIONS), count, p=np.array(SHARES) / sum(SHARES))
    home = _draws(plan, "home").random(count) < HOMES
    machine = _draws(plan, "machine")
    nat = np.where(home, machine.choice(3, count, p=NAT_SHARES), PUBLIC)
    up = np.where(home, machine.lognormal(np.log(1.5e6), 0.7, count), 60e6)  # 12 Mbit/s at the median
    line_s = np.where(home, machine.uniform(0.003, 0.018, count), 0.001)
    speed = np.where(home, machine.lognormal(np.log(300), 0.8, count), machine.lognormal(7.6, 0.6, count))
    share = np.where(home, machine.uniform(0.1, 0.45, count), machine.uniform(0.4, 1.0, count))
    load_s = np.where(home, machine.lognormal(np.log(30), 0.5, count), machine.uniform(6, 15, count))
    weights = (1.0 + np.arange(plan.models)) ** -POPULAR
    model = _draws(plan, "model").choice(plan.models, count, p=weights / weights.sum())
    ends_at, end = _ends(plan, joins_at, region)
    return Machines(
        region=region,
        home=home,
        nat=nat,
        line_s=line_s,
        up_bytes_s=up,
        speed=speed,
        share=share,
        model=model,
        kind=_kinds(plan, count),
        joins_at=joins_at,
        ends_at=ends_at,
        end=end,
        load_s=load_s,
        crowd=crowd,
    )


def _draws(plan: ScalePlan, what: str) -> np.random.Generator:
    return np.random.default_rng([plan.seed, *what.encode()])


def _joins(plan: ScalePlan) -> tuple[FloatArray, Flags]:
    """When each comes; those that are there from the start at 0. As many come as go at rest."""
    chance = _draws(plan, "joins")
    rate = plan.nodes * _early_ends(plan.ends_at) / plan.ends_at
    others = np.sort(chance.uniform(0, plan.ends_at, chance.poisson(rate * plan.ends_at)))
    crowd = np.sort(plan.crowd_at + chance.uniform(0, CROWD_S, plan.newcomers))
    times = np.concatenate([np.zeros(plan.nodes), others, crowd])
    of_crowd = np.concatenate([np.zeros(plan.nodes + len(others), np.bool_), np.ones(len(crowd), np.bool_)])
    order = np.argsort(times, kind="stable")
    return times[order], of_crowd[order]


def _early_ends(within_s: float) -> float:
    """The share of lives, met in the middle, that end within so many seconds."""
    lives = np.random.default_rng(7).lognormal(np.log(MEDIAN_LIFE_S), LIFE_SIGMA, 20_000)
    return float(np.minimum(lives, within_s).sum() / lives.sum())


def _ends(plan: ScalePlan, joins_at: FloatArray, region: IndexArray) -> tuple[FloatArray, IndexArray]:
    chance = _draws(plan, "lives")
    count = len(joins_at)
    lives = chance.lognormal(np.log(MEDIAN_LIFE_S), LIFE_SIGMA, count)
    # Who is there at the start is met in the middle of its life, and long lives are met more often.
    met = chance.choice(lives, plan.nodes, p=lives / lives.sum()) * chance.random(plan.nodes)
    ends_at = joins_at + np.concatenate([met, lives[plan.nodes :]])
    end = chance.choice(3, count, p=(0.4, 0.3, 0.3))
    lost = (region == LOST) & (joins_at < plan.vanish_at) & (ends_at > plan.vanish_at)
    return np.where(lost, plan.vanish_at, ends_at), np.where(lost, VANISHES, end)


def _kinds(plan: ScalePlan, count: int) -> IndexArray:
    chance = _draws(plan, "hostile")
    hostile = chance.random(count) < plan.hostile
    return np.where(hostile, chance.integers(1, 4, count), HONEST)
