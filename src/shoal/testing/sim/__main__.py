"""``python -m shoal.testing.sim``: simulations from the command line; results on stdout."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from shoal.testing.sim.churn import ChurnPlan, churn
from shoal.testing.sim.converge import converge
from shoal.testing.sim.scale.command import add_scale

FLAT = 1.2
"""The most that a node of a swarm may send, beside that of one a quarter or four times as large."""


def main() -> None:
    """Run what the command line asks for; the exit code says whether all held that must."""
    parser = argparse.ArgumentParser(prog="python -m shoal.testing.sim", description=__doc__)
    plans = parser.add_subparsers(dest="plan", required=True)
    for name, run, about in (
        ("churn", _churn, "sessions while nodes come and go"),
        (
            "converge",
            _converge,
            "how fast news spread, and at what cost, for half and twice the nodes, too",
        ),
    ):
        plan = plans.add_parser(name, help=about)
        plan.set_defaults(run=run)
        plan.add_argument("--nodes", type=int, default=200)
        plan.add_argument("--seed", type=int, default=1, help="the same seed gives the same plan")
        plan.add_argument("--json", action="store_true", help="one JSON object on stdout")
        if name == "churn":
            plan.add_argument("--minutes", type=float, default=30.0, help="simulated")
            plan.add_argument("--sessions", type=int, default=50, help="so many at once")
            plan.add_argument("--every", type=float, default=4.0, help="seconds from one change to the next")
            plan.add_argument("--vanish", type=float, default=0.5, help="share of kills without a word")
    about = "thousands of nodes: traffic, routes, placement, a crowd, hostile ones, a lost region"
    add_scale(plans.add_parser("scale", help=about))
    asked = parser.parse_args()
    sys.exit(asked.run(asked))


def _churn(asked: argparse.Namespace) -> int:
    plan = ChurnPlan(asked.nodes, asked.minutes, asked.sessions, asked.every, asked.seed, asked.vanish)
    outcome = churn(plan, lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    _say({"plan": asdict(plan), **outcome.shown()}, as_json=asked.json)
    return 0 if outcome.good else 1


def _converge(asked: argparse.Namespace) -> int:
    sizes = (asked.nodes // 2, asked.nodes, asked.nodes * 2)
    found = [converge(nodes, asked.seed) for nodes in sizes]
    if asked.json:
        _say({"swarms": [convergence.shown() for convergence in found]}, as_json=True)
    else:
        for convergence in found:
            _say(convergence.shown(), as_json=False)
    flat = max(c.sent_bytes_s for c in found) < FLAT * min(c.sent_bytes_s for c in found)
    return 0 if flat and all(convergence.good for convergence in found) else 1


def _say(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))  # noqa: T201  this is what was asked for
        return
    for name, value in found.items():
        print(f"{name:22} {value}")  # noqa: T201
    print()  # noqa: T201


if __name__ == "__main__":
    main()
