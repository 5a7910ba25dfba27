"""Results that are answered where they come: on the event loop, before anything else is done with them.

Between a result and the step that follows it then lies one call of the kernels: the head, the likeliest token
and its embedding (:mod:`shoal.executor.kernels.decode_steps`). The rules, the session and its caller hear of
it once the steps are on their way. What is not the one result that a session waits for goes the ordinary way
from its first byte, and so do all results of a session that takes other tokens than the likeliest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import trio

from shoal.client.ring.ring import Ring
from shoal.errors import ChannelClosed
from shoal.executor.ends import EndsEngine
from shoal.net.channel import Channel
from shoal.types import SessionId


def answer_at_once(rings: Mapping[SessionId, Ring], ends: EndsEngine, channel: Channel, data: bytes) -> bool:
    """Answer the results that ``data``, which came over ``channel``, consists of.

    Returns:
        Whether they were answered; if not, nothing has happened.
    """
    steps = ends.decode_steps
    if steps is None or not ends.borrow():
        return False
    came = trio.current_time()
    try:
        done = steps.run(channel.number, data, ends.wait_s)
        if done is None:
            return False
        ran, times = done
        ways: dict[Channel, list[tuple[bytes, bytes]]] = {}
        for step in ran:
            ways.setdefault(rings[step.session].first, []).append((step.session, step.message))
        for way, leaving in ways.items():
            with suppress(ChannelClosed):  # whoever waits for the steps hears that the session is lost
                way.send_fragments(leaving)
        ends.note_answered([step.session for step in ran], times)
    finally:
        ends.give_back()
    sent = trio.current_time()
    for step in ran:
        rings[step.session].went_on(step, came, sent)
    return True
