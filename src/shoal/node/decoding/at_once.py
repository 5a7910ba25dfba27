"""Decode steps that run where they came: on the event loop, before anything else is done with them.

Between a hop's socket and the next one's then lies one call of the kernels
(:mod:`shoal.executor.kernels.decode_steps`). What the ordinary way does besides, :class:`shoal.node.hop.Hop`
and all that it tells, is done once the results are on their way. Whatever is not of that form goes the
ordinary way from its first byte.
"""

from __future__ import annotations

from shoal.errors import ChannelClosed, LocalProtocolError
from shoal.executor.engine import Engine
from shoal.executor.kernels.decode_steps import RanStep, RanTimes
from shoal.net.channel import Channel
from shoal.node.hop import Hop
from shoal.node.sessions import Sessions


def run_at_once(sessions: Sessions, engine: Engine, channel: Channel, data: bytes) -> bool:
    """Run the steps that ``data``, which came over ``channel``, consists of, and send on what comes out.

    Returns:
        Whether they have run; if not, nothing has happened.
    """
    steps = engine.decode_steps
    if steps is None or not engine.borrow():
        return False
    try:
        done = steps.run(channel.number, data, engine.wait_s)
        if done is None:
            return False
        ran, times = done
        hops = [_hop(sessions, step) for step in ran]
        lost = _send(hops, ran)
        _note(engine, hops, ran, times)
    finally:
        engine.give_back()
    for hop, way, reason in lost:
        hop.lost_next(way, reason)
    return True


def _hop(sessions: Sessions, step: RanStep) -> Hop:
    hop = sessions.get(step.session)
    if hop is None:
        raise LocalProtocolError("a step has run of a session that is not open")
    return hop


def _send(hops: list[Hop], ran: list[RanStep]) -> list[tuple[Hop, Channel, str]]:
    """Send each result onward, those for one channel together. Returns the sessions whose way is gone."""
    ways: dict[Channel, list[tuple[Hop, RanStep]]] = {}
    for hop, step in zip(hops, ran, strict=True):
        ways.setdefault(hop.onward, []).append((hop, step))
    lost: list[tuple[Hop, Channel, str]] = []
    for way, leaving in ways.items():
        try:
            way.send_fragments([(step.session, step.message) for _, step in leaving])
        except ChannelClosed as error:
            lost += [(hop, way, error.message) for hop, _ in leaving]
    return lost


def _note(engine: Engine, hops: list[Hop], ran: list[RanStep], times: RanTimes) -> None:
    engine.note_decoded([step.session for step in ran], times)
    for hop, step in zip(hops, ran, strict=True):
        hop.ran(step, times)
        hop.prepare()
