"""A fleet from its file: ``shoal.plan_fleet("fleet.toml")``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from shoal import config
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.models.graph.graph_store import GraphStore, names_graph
from shoal.planning.fleet.commands import FleetModel, FleetStep, check_command, fleet_steps
from shoal.planning.fleet.dealing import FleetPlan, place_fleet
from shoal.planning.fleet.machines import (
    Described,
    Fleet,
    check_distinct,
    check_memory,
    completed,
    each_machine,
    read_fleet,
)
from shoal.planning.measure import measure_here
from shoal.planning.model_input import PlanInput, plan_input
from shoal.planning.roofline import Machine
from shoal.progress import Progress, silent

LEAST_SESSIONS = 8
"""At a time, where nobody says how many; one for each machine where these are more."""


@dataclass(frozen=True, slots=True)
class PlannedFleet:
    """What to run where."""

    asked: PlanInput
    machines: tuple[Machine, ...]
    described: tuple[Described, ...]
    """Of each machine, what its file says."""
    plan: FleetPlan
    steps: tuple[FleetStep, ...]
    """In the order in which to run them."""
    check: str
    """The command that shows whether all of them are there."""

    @property
    def stand_ins(self) -> list[str]:
        """Machines of whose speed the file says too little: this one's stands in for it."""
        pairs = zip(self.machines, self.described, strict=True)
        return [machine.name for machine, described in pairs if not described.complete]


def plan_fleet(path: str | Path, **options: Any) -> PlannedFleet:
    """Plan what each of a file's machines should run.

    Args:
        options: any field of :class:`shoal.config.Settings`; ``format`` and ``kv`` go before the file's.

    Raises:
        UsageError: the file makes no sense, has a machine twice, or names no model.
        OutOfResources: the machines do not hold the model once; says how much memory is lacking.
        ModelError: the model is not known, or cannot be served in spans.
    """
    fleet = read_fleet(Path(path))
    said = {"format": fleet.format, "kv": fleet.kv}
    return planned_fleet(fleet, config.load(said | options))


def planned_fleet(
    fleet: Fleet, settings: Settings, report: Progress = silent, measure: Callable[[], Machine] | None = None
) -> PlannedFleet:
    """As :func:`plan_fleet`, of a fleet that has been read.

    Args:
        settings: with the format and the KV in which the model is to be held.
        measure: measures this machine, which stands in where the speed of another is not said.
    """
    if not fleet.model:
        raise UsageError("the fleet names no model", check='write model = "NAME" above the machines')
    if names_graph(fleet.model) or GraphStore(settings.paths.graphs).find(fleet.model):
        raise UsageError(
            f"{fleet.model} is a graph, and fleets serve language models",
            check="place its segments by shoal plan",
            next_command=f"shoal plan {fleet.model} --machines FILE",
        )
    check_memory(fleet.machines)
    machines = completed(fleet.machines, 1, measure or partial(measure_here, settings, report))
    check_distinct(fleet.machines, machines)
    sessions = fleet.sessions or max(LEAST_SESSIONS, len(machines))
    report(f"reading the config of {fleet.model}", 0, 0)
    settings = replace(settings, private_ends="0:0")  # which blocks a client keeps is the client's affair
    asked = plan_input(settings, fleet.model, sessions, fleet.context)
    report("placing the blocks", 0, 0)
    plan = place_fleet(machines, asked.cost, asked.load)
    described = tuple(each_machine(fleet.machines))
    what = FleetModel(fleet.model, asked.format, settings.kv, fleet.swarm)
    steps = tuple(fleet_steps(plan, machines, described, what))
    return PlannedFleet(asked, tuple(machines), described, plan, steps, check_command(what))
