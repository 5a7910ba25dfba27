"""Finds the adapter that a client names among those that the swarm serves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import trio

from shoal.client.ring.route_finder import HEAR_WITHIN_S, RouteFinder
from shoal.errors import UnknownModel, UsageError
from shoal.models.store.local_model import LocalModel
from shoal.swarm.announcement import Announcement, ServedAdapter
from shoal.types import AdapterDigest

SHORTEST_DIGEST = 8
"""Hex digits by which an adapter may be named instead."""


async def with_adapter(
    finder: RouteFinder, local: LocalModel, name: str, within_s: float = HEAR_WITHIN_S
) -> LocalModel:
    """The model with the adapter of that name, or whose digest begins so.

    Args:
        within_s: how long it is waited for, where nobody known serves it.

    Raises:
        UnknownModel: nobody serves the model with it; tells which there are.
        UsageError: peers serve several by that name.
    """
    with trio.move_on_after(within_s):
        while not _named(finder.serving(local.shape), name):
            await finder.member.wait_changed()
    serving = finder.serving(local.shape)
    found = _named(serving, name)
    if not found:
        others = sorted({adapter.name for adapter in adapters_of(serving)})
        known = f"there is {', '.join(others)}" if others else "it is served without adapters"
        raise UnknownModel(
            f"nobody serves {local.name} with the adapter {name}: {known}",
            check="check the adapter's name, and that nodes with it serve every block",
            next_command=f"shoal serve {local.name} --adapter {name}=PATH",
        )
    if len(found) > 1:
        digests = ", ".join(sorted(digest[7:19] for digest in found))
        raise UsageError(
            f"peers serve {len(found)} adapters called {name}, with the digests {digests}",
            check=f"name one by the beginning of its digest: {local.name}:{min(found)[7:19]}",
        )
    return adapted(local, name, AdapterDigest(found.pop()))


def adapted(local: LocalModel, name: str, digest: AdapterDigest) -> LocalModel:
    """A model that hops run with an adapter, under a name of its own."""
    return replace(local, name=f"{local.name}:{name}", shape=replace(local.shape, adapter=digest))


def adapters_of(serving: Iterable[Announcement]) -> list[ServedAdapter]:
    """Every adapter that these peers have."""
    return [adapter for a in serving if a.served for adapter in a.served.adapters]


def no_own_blocks() -> UsageError:
    """The error of a client that keeps blocks of a model with an adapter to itself."""
    return UsageError(
        "an adapter is where its nodes are: no blocks can be kept to oneself beside it",
        check="leave private_ends out, or ask the model without its adapter",
    )


def _named(serving: Iterable[Announcement], name: str) -> set[str]:
    known = adapters_of(serving)
    by_name = {adapter.digest for adapter in known if adapter.name == name}
    if by_name or len(name) < SHORTEST_DIGEST:
        return by_name
    return {adapter.digest for adapter in known if adapter.digest.removeprefix("sha256:").startswith(name)}
