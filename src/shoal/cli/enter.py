"""Being in a swarm for one command: what every command that needs peers begins with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shoal.cli.output import say
from shoal.cli.progress import working
from shoal.config import Settings
from shoal.net.identity import Identity
from shoal.swarm import membership
from shoal.swarm.membership import PUBLIC, Membership

if TYPE_CHECKING:
    from shoal.client.swarm import Swarm
    from shoal.net.network import Network
    from shoal.swarm.announcement import Announcement
    from shoal.swarm.member import Member

_ResultT = TypeVar("_ResultT")


def member_of(settings: Settings, *, create: bool = False) -> Membership:
    """The swarm to be in; says once what the public one means.

    Raises:
        NotAllowed: the public swarm without ``--public``.
        NotRunning: this machine is in no such swarm, and is not to ``create`` it.
    """
    if settings.swarm == PUBLIC or create:
        found = membership.of(settings)
    else:
        found = membership.load(settings.paths.swarms, settings.swarm)
    if found.name == PUBLIC:
        from shoal.swarm.join import PUBLIC_NOTICE

        say(f"note: {PUBLIC_NOTICE}")
    return found


def in_swarm(
    settings: Settings, use: Callable[[Swarm], Awaitable[_ResultT]], identity: Identity | None = None
) -> _ResultT:
    """Run ``use`` in the swarm and return what it returns.

    Args:
        identity: under which others can reach this machine; by default nobody needs to.

    Raises:
        UnknownModel: at once, where the model's name can be none.
        ShoalError: as :func:`enter_swarm`, and as ``use``.
    """
    import trio

    check_name(settings, settings.model)

    async def go() -> _ResultT:
        async with enter_swarm(settings, identity=identity) as swarm:
            return await use(swarm)

    return trio.run(go)


def check_name(settings: Settings, model: str) -> None:
    """Find out at once whether a name can be a model, unless the peers of a private swarm are to be asked.

    Raises:
        UnknownModel: it can be none.
    """
    from shoal.errors import UnknownModel
    from shoal.models.adapters.names import split_name
    from shoal.models.store.store import ModelStore

    try:
        ModelStore(settings.paths.models).check(split_name(model)[0])
    except UnknownModel:
        if settings.swarm == PUBLIC or settings.swarm not in membership.names(settings.paths.swarms):
            raise


@dataclass(frozen=True, slots=True)
class Onlooker:
    """A peer that only looks: it has no model, and needs no torch."""

    settings: Settings
    network: Network
    member: Member

    def announcements(self) -> list[Announcement]:
        """Every peer that serves something now, in the order of their standing here."""
        return self.member.alive()


def looking(
    settings: Settings, use: Callable[[Onlooker], Awaitable[_ResultT]], *, model: str | None = None
) -> _ResultT:
    """Run ``use`` in the swarm without any model.

    Args:
        model: the name that ``use`` will look for, if any.

    Raises:
        UnknownModel: at once, where that name can be no model's.
        ShoalError: as :func:`member_of`, and as ``use``.
    """
    import trio

    from shoal.models.store.store import ModelStore
    from shoal.swarm.join import join_swarm

    if model is not None:
        ModelStore(settings.paths.models).check(model)

    async def go() -> _ResultT:
        found = member_of(settings)
        async with AsyncExitStack() as stack:
            with working(f"joining swarm {found.name}"):
                joining = join_swarm(settings, found, Identity.ephemeral(), listen=False)
                network, member = await stack.enter_async_context(joining)
            models = await trio.to_thread.run_sync(ModelStore(settings.paths.models).list)
            member.directory.know(model.shape for model in models)
            return await use(Onlooker(settings, network, member))

    return trio.run(go)


@asynccontextmanager
async def enter_swarm(
    settings: Settings, *, create: bool = False, identity: Identity | None = None
) -> AsyncGenerator[Swarm]:
    """The swarm, as a client, until the block ends. Raises as :func:`member_of` and ``open_swarm``."""
    found = member_of(settings, create=create)
    async with AsyncExitStack() as stack:
        with working(f"joining swarm {found.name}"):
            # Torch takes a while to import, so the bar must be there before it.
            from shoal.client.connect import open_swarm

            swarm = await stack.enter_async_context(open_swarm(settings, found, identity))
        yield swarm
