"""The commands that make a fleet of a plan, as a person types them at each machine. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from shoal.config import Settings
from shoal.planning.fleet.dealing import FleetPlace, FleetPlan
from shoal.planning.fleet.machines import Described
from shoal.planning.roofline import Machine
from shoal.types import Format, Kv

LARGE = 64 << 20
"""Bytes from which on MiB are exact enough."""
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Settings)}


@dataclass(frozen=True, slots=True)
class FleetStep:
    """Commands for one machine, in the order in which machines are set up."""

    machine: str
    address: str
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FleetModel:
    """What every command of a fleet says."""

    model: str
    format: Format
    kv: Kv
    swarm: str

    @property
    def in_swarm(self) -> list[str]:
        """``--swarm``, where it is not the one of the settings."""
        return ["--swarm", self.swarm] if self.swarm else []


def serve_command(place: FleetPlace, machine: Described, plan: FleetPlan, what: FleetModel) -> str:
    """``shoal serve`` of a machine: its blocks, the format, and all the memory that is counted on.

    Where a node would hold fewer sessions or tokens than the plan counts on, its environment says how many.
    """
    words = ["shoal", "serve", what.model, "--span", str(place.span), "--format", what.format]
    words += [] if what.kv == "auto" else ["--kv", what.kv]
    words += ["--memory", _size(place.room)]
    words += ["--device", machine.device] if machine.device else []
    words += ["--threads", str(machine.threads)] if machine.threads else []
    words += what.in_swarm
    tokens = place.sessions * plan.load.context
    more = [f"SHOAL_KV_TOKENS={tokens}"] if tokens > _DEFAULTS["kv_tokens"] else []
    more += [f"SHOAL_MAX_SESSIONS={place.sessions}"] if place.sessions > _DEFAULTS["max_sessions"] else []
    return " ".join([*more, shlex.join(words)])


def fleet_steps(
    plan: FleetPlan, machines: Sequence[Machine], described: Sequence[Described], what: FleetModel
) -> Iterator[FleetStep]:
    """What to run where: the first that serves makes the swarm and an invite, the others join.

    Args:
        machines: those that were planned with.
        described: of each of them what was said of it.
    """
    serving = {place.machine: place for place in plan.places}
    first = min(serving)
    public = what.swarm == "public"
    for number in sorted({0, *serving}, key=lambda one: (one != first, one)):
        commands: list[str] = []
        if number != first and not public:
            named = ["--name", what.swarm] if what.swarm else []
            commands.append(shlex.join(["shoal", "join", *named, "-"]) + " < invite")
        if number in serving:
            commands.append(serve_command(serving[number], described[number], plan, what))
        if number == first and not public:
            commands.append(shlex.join(["shoal", "invite", *what.in_swarm]) + " > invite")
        if number == 0:
            commands.append(shlex.join(["shoal", "gateway", "--model", what.model, *what.in_swarm]))
        yield FleetStep(machines[number].name, described[number].address, tuple(commands))


def _size(room: int) -> str:
    """As ``--memory`` takes it, and no more than there is."""
    return f"{room >> 20}MiB" if room >= LARGE else f"{room >> 10}KiB"


def check_command(what: FleetModel) -> str:
    """What shows, from any of the machines, whether all of them are there."""
    return shlex.join(["shoal", "status", *what.in_swarm])
