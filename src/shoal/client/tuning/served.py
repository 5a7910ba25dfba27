"""Finds the adapter that a client names among those that the swarm serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import trio

from shoal.client.ring.route_finder import HEAR_WITHIN_S, RouteFinder
from shoal.errors import UnknownModel, UsageError
from shoal.models.adapters.names import named_by, only_one
from shoal.models.store.local_model import LocalModel
from shoal.swarm.announcement import Announcement, ServedAdapter
from shoal.types import AdapterDigest, ModelShape, PeerId, gaps

_Named = Mapping[str, Sequence[Announcement]]
"""Digests of adapters, and who announces each."""


async def with_adapter(
    finder: RouteFinder, local: LocalModel, name: str, within_s: float = HEAR_WITHIN_S
) -> LocalModel:
    """The model with the adapter whose digest begins so, or of that name.

    Args:
        within_s: how long it is waited for, where nobody known serves it.

    Raises:
        UnknownModel: nobody serves the model with it; tells which there are.
        UsageError: peers serve several by that name.
    """
    with trio.move_on_after(within_s):
        while not _covering(_named(finder.serving(local.shape), name), local.shape):
            await finder.member.wait_changed()
    serving = finder.serving(local.shape)
    found = chosen(finder, local.shape, _named(serving, name))
    if not found:
        others = sorted({adapter.name for adapter in adapters_of(serving)})
        known = f"there is {', '.join(others)}" if others else "it is served without adapters"
        raise UnknownModel(
            f"nobody serves {local.name} with the adapter {name}: {known}",
            check="check the adapter's name, and that nodes with it serve every block",
            next_command=f"shoal serve {local.name} --adapter {name}=PATH",
        )
    only_one(name, list(found), "peers serve", f"{local.name}:")
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


def names_of(finder: RouteFinder, shape: ModelShape) -> dict[str, AdapterDigest]:
    """Every name under which a model has one adapter that is to be counted on, and no other."""
    serving = finder.serving(shape)
    found = {
        name: chosen(finder, shape, _named(serving, name))
        for name in {adapter.name for adapter in adapters_of(serving)}
    }
    return {name: AdapterDigest(min(digests)) for name, digests in found.items() if len(digests) == 1}


def chosen(finder: RouteFinder, shape: ModelShape, named: _Named) -> set[str]:
    """The digests that are left where peers mean several by one name.

    Those count that are served for every block, if any is: to announce an adapter costs a stranger nothing,
    and must not take its name from who serves it. Of several, one that peers which have proven themselves
    serve for every block comes before those that strangers alone do.
    """
    found = _covering(named, shape) or named
    proven = {
        digest: [a for a in announced if finder.reputation.proven(PeerId(a.peer))]
        for digest, announced in found.items()
    }
    return set((len(found) > 1 and _covering(proven, shape)) or found)


def _covering(named: _Named, shape: ModelShape) -> _Named:
    """Those that are served for every block."""
    return {
        digest: announced
        for digest, announced in named.items()
        if not gaps((a.served.span for a in announced if a.served), shape.n_blocks)
    }


def _named(serving: Iterable[Announcement], key: str) -> _Named:
    """Who announces which of the adapters that are called so."""
    is_meant, found = named_by(key), dict[str, list[Announcement]]()
    for announcement in serving:
        for adapter in announcement.served.adapters if announcement.served else ():
            if is_meant(adapter.name, adapter.digest):
                found.setdefault(adapter.digest, []).append(announcement)
    return found
