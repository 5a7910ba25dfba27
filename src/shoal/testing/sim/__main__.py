"""``python -m shoal.testing.sim``: simulations from the command line; results on stdout."""

from __future__ import annotations

import argparse
import json

from shoal.testing.sim.converge import converge


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m shoal.testing.sim")
    plans = parser.add_subparsers(dest="plan", required=True)
    convergence = plans.add_parser("converge", help="how fast news and deaths spread, and what it costs")
    convergence.add_argument("--nodes", type=int, default=200, help="measured, and half and twice as many")
    for plan in (convergence,):
        plan.add_argument("--seed", type=int, default=1, help="the same seed gives the same plan")
        plan.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = parser.parse_args()
    sizes = (asked.nodes // 2, asked.nodes, asked.nodes * 2)
    found = [converge(nodes, asked.seed).shown() for nodes in sizes]
    if asked.json:
        print(json.dumps({"swarms": found}))  # noqa: T201  this is what was asked for
        return
    for name in found[0]:
        print(f"{name:24}", *(f"{convergence[name]!s:>40}" for convergence in found))  # noqa: T201


if __name__ == "__main__":
    main()
