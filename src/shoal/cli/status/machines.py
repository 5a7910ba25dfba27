"""What the peers of a swarm show to run on, for who looks at it. `shoal peers --attested` shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from shoal.cli.status.overview import ShownMachine
from shoal.client.attestation.asking import AttestationQuestions
from shoal.errors import ShoalError, as_shoal_error
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.swarm.announcement import Announcement, Served
from shoal.tasks import one_error
from shoal.trust.attestation.evidence import AttestationRefused
from shoal.trust.attestation.measurements import Measurements, read_measurements
from shoal.trust.attestation.verify import MAKERS, Roots
from shoal.types import PeerId
from shoal.wire.messages import Attested, Message

if TYPE_CHECKING:
    from shoal.cli.enter import Onlooker

DIAL_WITHIN_S = 5.0
MOST = 64
"""Peers that are asked; anybody can announce more."""


async def ask_machines(
    swarm: Onlooker, alive: Sequence[Announcement], roots: Roots = MAKERS
) -> dict[PeerId, ShownMachine]:
    """What each of the first peers that say to show a machine does show; verified, also without a list.

    Raises:
        UsageError: there is a list of measurements, and it cannot be read.
    """
    path = swarm.settings.measurements_file
    named = bool(swarm.settings.measurements) or path.exists()
    allowed = read_measurements(path) if named else Measurements()
    questions = AttestationQuestions(allowed, swarm.member.clock.wall, roots)
    found: dict[PeerId, ShownMachine] = {}

    async def ask(announcement: Announcement, served: Served) -> None:
        found[PeerId(announcement.peer)] = await ask_machine(swarm.network, announcement, served, questions)

    with one_error():
        async with trio.open_nursery() as nursery:
            showing = [(a, a.served) for a in alive if a.served and a.served.attests]
            for announcement, served in showing[:MOST]:
                nursery.start_soon(ask, announcement, served)
    return found


async def ask_machine(
    network: Network, announcement: Announcement, served: Served, questions: AttestationQuestions
) -> ShownMachine:
    """What one peer shows."""

    async def take(channel: Channel, message: Message, payload: bytes) -> None:
        if isinstance(message, Attested):
            questions.answered(channel, message, payload)

    try:
        channel = Channel(await network.open_pipe(announcement.address, deadline_s=DIAL_WITHIN_S))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.run, take)
            try:
                await channel.wait_ready(DIAL_WITHIN_S)
                verified = await questions.ask(channel, served)
            finally:
                channel.close()
    except (ShoalError, BaseExceptionGroup) as error:
        return _unbelieved(error)
    return ShownMachine(verified.shown, verified.claims.measurements, on_list=True)


def _unbelieved(group: BaseException) -> ShownMachine:
    """Why a peer's machine is not believed."""
    error = as_shoal_error(group)
    if error is None:
        raise group
    claims = error.claims if isinstance(error, AttestationRefused) else None
    return ShownMachine(f"refused: {error.message}", claims.measurements if claims else {})
