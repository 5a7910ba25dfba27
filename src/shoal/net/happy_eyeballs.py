"""Several ways to one end, tried one after the other before the first has failed (RFC 8305)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from shoal.errors import ChannelClosed, NotAllowed

STAGGER_S = 0.25
"""How long one attempt is alone (RFC 8305, section 8); a failure lets the next begin at once."""

_Result = TypeVar("_Result")


async def first(
    attempts: Sequence[Callable[[], Awaitable[_Result]]],
    discard: Callable[[_Result], Awaitable[None]],
    alone_s: Sequence[float] = (),
) -> _Result:
    """What the first attempt to succeed gives; the others are cancelled.

    Args:
        discard: ends a second success, which came before its cancellation.
        alone_s: how long each attempt is alone before the next begins, ``STAGGER_S`` for those beyond.

    Raises:
        NotAllowed: every attempt failed, one of them so.
        ChannelClosed: every attempt failed; or there was none.
    """
    won: list[_Result] = []
    errors: list[ChannelClosed | NotAllowed] = []

    async def attempt(way: Callable[[], Awaitable[_Result]], failed: trio.Event) -> None:
        try:
            result = await way()
        except (ChannelClosed, NotAllowed) as error:
            errors.append(error)
            failed.set()
            return
        # Two may succeed before the scope's cancellation reaches the second.
        if won:
            await discard(result)
            return
        won.append(result)
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for number, way in enumerate(attempts):
                failed = trio.Event()
                nursery.start_soon(attempt, way, failed)
                with trio.move_on_after(alone_s[number] if number < len(alone_s) else STAGGER_S):
                    await failed.wait()
    except BaseException:
        for result in won:  # the caller was cancelled in the moment of success
            await discard(result)
        raise
    if won:
        return won[0]
    raise next((e for e in errors if isinstance(e, NotAllowed)), None) or ChannelClosed(
        "; ".join(dict.fromkeys(e.message for e in errors)) or "no address to dial"
    )
