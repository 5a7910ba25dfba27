"""What two peers say over a new pipe before a channel goes on there.

Who dialled the channel dials again, and says which channel it is and how many of its bytes have come
(``Resume``). The other end answers with its own count (``Resumed``), and both send again from there. Until it
has the answer the dialling end stays with the old pipe, if there is one: nothing stops meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from shoal.errors import ChannelClosed, RemoteProtocolError
from shoal.net.network import Pipe
from shoal.wire.framing import Outgoing, first_message
from shoal.wire.messages import Goodbye, Message, Resume, Resumed

ANSWERED_WITHIN_S = 3.0
GOODBYE_WITHIN_S = 0.25
REVIVED = "its pipe is another channel's"
"""Why a channel ended that never began."""

Revive = Callable[[Pipe, Resume], bool]
"""Takes a pipe for the channel that a peer names; whether there is such a channel, which then owns it."""


async def ask_to_resume(pipe: Pipe, channel: bytes, received: int) -> tuple[Resumed, bytes]:
    """Ask the other end of a new pipe to go on with a channel there.

    Args:
        channel: the peer's name of it.
        received: bytes of the channel that have come.

    Returns:
        Its answer, and what it has sent behind that.

    Raises:
        ChannelClosed: it does not want to, or says nothing in time.
        RemoteProtocolError: it says something else.
    """
    with trio.move_on_after(ANSWERED_WITHIN_S):
        await pipe.send_all(message_bytes(Resume(channel, received)))
        answer, _, rest = await read_first(pipe)
        if not isinstance(answer, Resumed):
            raise RemoteProtocolError(f"a {type(answer).__name__} in place of an answer")
        return answer, rest
    raise ChannelClosed(f"{pipe.peer} does not say whether it goes on")


async def open_accepted(pipe: Pipe, revive: Revive, within_s: float) -> tuple[str, bytes]:
    """Read what an accepted pipe begins with.

    Returns:
        Why no channel begins with it, ``REVIVED`` where another goes on with it, and what was read; no reason
        where one begins.
    """
    try:
        with trio.fail_after(within_s):
            first, opening, rest = await read_first(pipe)
    except (ChannelClosed, RemoteProtocolError) as error:
        return error.message, b""
    except trio.TooSlowError:
        return f"no hello within {within_s:.0f} s", b""
    if not isinstance(first, Resume):
        return "", opening + rest
    if not rest and revive(pipe, first):
        return REVIVED, b""
    return "the peer wants to go on with a channel that there is not", b""


async def say_goodbye(pipe: Pipe) -> None:
    """Tell the other end of a pipe that is about to close that there is no need to look for another one."""
    with trio.move_on_after(GOODBYE_WITHIN_S), suppress(ChannelClosed):
        await pipe.send_all(message_bytes(Goodbye()))


async def read_first(pipe: Pipe) -> tuple[Message, bytes, bytes]:
    """The first message of a pipe, its bytes, and those that came behind it.

    Raises:
        ChannelClosed: the peer hung up.
        RemoteProtocolError: it is none, or a long one.
    """
    data = b""
    while (found := first_message(data)) is None:
        part = await pipe.receive_some()
        if not part:
            raise ChannelClosed("the peer hung up")
        data += part
    message, size = found
    return message, data[:size], data[size:]


def message_bytes(message: Message) -> bytes:
    """A short message, ready for the pipe."""
    return Outgoing(0, message).next_fragment()
