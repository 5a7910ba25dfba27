"""``python -m shoal.testing.sim scale``: a plan, and its figures with hostile ones and without."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from typing import Any

from shoal.testing.sim.scale.plan import CROWD, EXPIRY_S, ScalePlan
from shoal.testing.sim.scale.run import ScaleFigures, simulate_scale

NEWS_WITHIN_S = 5.0
NEAR = 0.1
"""How near to an optimum what is decided from a part must come."""
SLOWER = 1.5
"""By how much hostile ones may delay first tokens."""
FAILED_MORE = 0.01
"""Sessions that may find no route, beside those that find none without hostile ones."""
LOOKUP_WITHIN_S = 3.0
BYTES_MOST = 10.0


@dataclass(frozen=True, slots=True)
class Demand:
    """Something that must hold, and whether it does."""

    name: str
    good: bool


def add_scale(plan: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    plan.set_defaults(run=run_scale)
    plan.add_argument("--nodes", type=int, default=1000)
    plan.add_argument("--models", type=int, default=20)
    plan.add_argument(
        "--minutes", type=float, default=10.0, help="simulated, from the crowd to the loss of a region"
    )
    plan.add_argument("--seed", type=int, default=1, help="the same seed gives the same plan")
    plan.add_argument("--hostile", type=float, default=0.2, help="share of the identities")
    plan.add_argument(
        "--crowd", type=int, default=CROWD, help="so many come in a minute, as many as there are at most"
    )
    plan.add_argument("--sessions", type=float, default=3.0, help="that begin in a second")
    plan.add_argument("--draws", type=int, default=500, help="routes and look-ups that are measured")
    plan.add_argument("--alone", action="store_true", help="not once more without hostile ones, beside it")
    plan.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run_scale(asked: argparse.Namespace) -> int:
    """Simulate; the exit code says whether all held that must."""
    plan = ScalePlan(
        nodes=asked.nodes,
        models=asked.models,
        minutes=asked.minutes,
        seed=asked.seed,
        hostile=asked.hostile,
        crowd=asked.crowd,
        sessions_s=asked.sessions,
        draws=asked.draws,
    )
    honest = None if asked.alone or not plan.hostile else _begin_honest(plan)
    try:
        found = simulate_scale(plan, lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
        without = None if honest is None else _end_honest(honest)
    finally:
        if honest is not None:
            honest.kill()
    demands = demands_of(plan, found, without)
    shown: dict[str, Any] = {field.name: getattr(plan, field.name) for field in fields(plan)} | found.shown()
    if without is not None:
        shown["honest"] = without
    if asked.json:
        print(json.dumps(shown | {"demands": {demand.name: demand.good for demand in demands}}))  # noqa: T201
    else:
        _print(shown, without, demands)
    return 0 if all(demand.good for demand in demands) else 1


def demands_of(plan: ScalePlan, found: ScaleFigures, without: dict[str, Any] | None) -> list[Demand]:
    """What a swarm of any size must keep, and whether this one did."""
    demands = [
        Demand(f"a node sends at most {BYTES_MOST:.0f} kB/s", found.kilobytes_s <= BYTES_MOST),
        Demand(f"a new place is known within {NEWS_WITHIN_S:.0f} s", found.news_p95_s <= NEWS_WITHIN_S),
        Demand("a dead peer is unused within one expiry (p95)", not found.gone_p95_s > EXPIRY_S),
        Demand(
            f"a model never asked for is found within {LOOKUP_WITHIN_S:.0f} s (p95)",
            found.lookup_p95_s <= LOOKUP_WITHIN_S,
        ),
        Demand("routes from views cost at most 10% more than from all", found.route_whole <= 1 + NEAR),
        Demand("the swarm carries 90% of the optimum after the crowd", found.tokens_share >= 1 - NEAR),
        Demand("no move uncovers a block", found.uncovered_by_moves == 0),
        Demand("at rest at most one move of a node an hour", found.moves_rest <= 1),
        Demand("coverage is whole a minute after a region was lost", found.whole_s <= 60),
        Demand(
            "1% of the sessions at most find no route, beside those that find none without liars",
            found.failed <= FAILED_MORE + (0.0 if without is None else float(without["failed"])),
        ),
    ]
    if without is not None:
        most = SLOWER * float(without["first_p95_s"] or 0.0)
        demands.append(Demand("liars delay first tokens by half at most", found.first_p95_s <= most))
    return demands


def _begin_honest(plan: ScalePlan) -> subprocess.Popen[str]:
    """The same without hostile ones, in a process of its own: on another core."""
    told = replace(plan, hostile=0.0)
    options = {
        "--nodes": told.nodes,
        "--models": told.models,
        "--minutes": told.minutes,
        "--seed": told.seed,
        "--hostile": told.hostile,
        "--crowd": told.crowd,
        "--sessions": told.sessions_s,
        "--draws": told.draws,
    }
    given = [str(part) for option in options.items() for part in option]
    command = [sys.executable, "-m", "shoal.testing.sim", "scale", *given, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _end_honest(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    return json.loads(out)


def _print(shown: dict[str, Any], without: dict[str, Any] | None, demands: list[Demand]) -> None:
    for name, value in shown.items():
        if name != "honest":
            print(f"{name:22} {value!s:>12} {'' if without is None else without.get(name, ''):>12}")  # noqa: T201
    for demand in demands:
        print(f"{'yes' if demand.good else 'NO ':4} {demand.name}")  # noqa: T201
