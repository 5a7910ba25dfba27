"""What the shell completes names to. A name that cannot be found out is no reason to disturb who types."""

from __future__ import annotations

from contextlib import suppress

from shoal import config
from shoal.errors import ShoalError


def installed_models(incomplete: str) -> list[str]:
    """The models on this machine."""
    from shoal.models.store.store import ModelStore

    found: list[str] = []
    with suppress(ShoalError, OSError):
        found = [model.name for model in ModelStore(config.here().models).list()]
    return _beginning(incomplete, found)


def models(incomplete: str) -> list[str]:
    """The models on this machine, and those of the catalogue."""
    from shoal.models.store.catalogue import CATALOGUE

    return _beginning(incomplete, [*installed_models(""), *(entry.name for entry in CATALOGUE)])


def swarms(incomplete: str) -> list[str]:
    """The swarms that this machine is in."""
    from shoal.swarm import membership

    return _beginning(incomplete, membership.names(config.here().swarms))


def _beginning(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
