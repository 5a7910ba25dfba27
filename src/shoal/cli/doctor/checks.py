"""What `shoal doctor` looks at: each check is one function of the settings that says what it found."""

from __future__ import annotations

from collections.abc import Callable

from shoal.cli.doctor import machine, network
from shoal.cli.doctor.finding import Finding
from shoal.config import Settings
from shoal.errors import ShoalError

Check = Callable[[Settings], Finding]

CHECKS: dict[str, Check] = {
    "python": machine.python_version,
    "packages": machine.packages,
    "transformers": machine.transformers,
    "memory": machine.memory,
    "device": machine.device,
    "disk": machine.disk,
    "config": machine.config_file,
    "identity": machine.identity,
    "model": machine.model,
    "format": machine.format,
    "draft": machine.draft,
    "clock": machine.clock,
    "ports": network.ports,
    "mdns": network.multicast,
    "hub": network.hub,
    "swarms": network.swarms,
    "iroh": network.iroh,
    "router": network.router,
}

SLOW = frozenset({"transformers"})
"""Checks that import torch and transformers: seconds, and memory that a process keeps."""

JOINING = frozenset({"router"})
"""Checks that join the swarm for a moment: whoever is in it knows what they would find."""


def run(name: str, settings: Settings) -> Finding:
    """The finding of one check; an error that it met is a finding too."""
    try:
        return CHECKS[name](settings)
    except ShoalError as error:
        return Finding(name, "fail", error.message, error.next_command or error.check)
    except OSError as error:
        return Finding(name, "fail", str(error), "check that the folder is yours")
