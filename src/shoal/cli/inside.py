"""Being in a swarm for one command: what every command that needs peers begins with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, get_args

from shoal.cli.output import say
from shoal.cli.progress import working
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.swarm import membership
from shoal.swarm.here import running
from shoal.swarm.membership import PUBLIC, Membership
from shoal.types import DType

if TYPE_CHECKING:
    from shoal.client.swarm import Swarm

Result = TypeVar("Result")


def member_of(settings: Settings, *, create: bool = False) -> Membership:
    """The swarm to be in; says once what the public one means.

    Raises:
        NotAllowed: the public swarm without the user's word.
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


def in_swarm(settings: Settings, use: Callable[[Swarm], Awaitable[Result]]) -> Result:
    """Run ``use`` in the swarm and return what it returns. Raises as :func:`entered`, and as ``use``."""
    import trio

    async def go() -> Result:
        async with entered(settings) as swarm:
            return await use(swarm)

    return trio.run(go)


@asynccontextmanager
async def entered(settings: Settings) -> AsyncGenerator[Swarm]:
    """The swarm, as a client, until the block ends. Raises as :func:`member_of` and ``open_swarm``."""
    found = member_of(settings)
    async with AsyncExitStack() as stack:
        with working(f"entering swarm {found.name}"):
            # Torch takes a while to import, so the bar must be there before it.
            from shoal.client.connect import open_swarm

            swarm = await stack.enter_async_context(open_swarm(near(settings), found))
        yield swarm


def near(settings: Settings) -> Settings:
    """The settings with the addresses of the swarm's nodes on this machine, which need no discovery."""
    nodes = [node for node in running(settings.paths.nodes) if node.swarm == settings.swarm]
    here = tuple(address for node in nodes for address in node.addresses)
    return replace(settings, bootstrap=(*here, *settings.bootstrap))


def wanted_dtype(text: str | None) -> DType | None:
    """The value of ``--dtype``; ``None`` lets the swarm's peers decide.

    Raises:
        UsageError: it is none that Shoal computes in.
    """
    names: tuple[DType, ...] = get_args(DType)
    for name in names:
        if text == name:
            return name
    if text is None:
        return None
    raise UsageError(f"--dtype: {text!r} is not one of {', '.join(names)}")
