"""Forward and backward for clients that tune an adapter through this node's blocks.

Nothing of it is kept: what a client sends is here for its question, activations for one block and one
sequence of it. Only so many questions wait, none is longer than the node allows, and one that takes too long
is given up.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import trio

from shoal.errors import (
    Busy,
    ChannelClosed,
    DeadlineExceeded,
    DigestMismatch,
    NotAllowed,
    PromptTooLong,
    ShoalError,
    StepFailed,
)
from shoal.executor.engine import Engine
from shoal.net.channel import Channel
from shoal.net.handshake_backlog import network_of
from shoal.node.handlers import Handlers
from shoal.types import Digest, PeerId, Span
from shoal.wire.fields import MAX_PAYLOAD
from shoal.wire.messages import shorten
from shoal.wire.training import NotTrained, Train, Trained

MOST_WAITING = 4
"""Questions of all clients, the one that is computed among them."""
MOST_OF_PEER = 2
MOST_OF_NETWORK = 3
"""So that machines of one subscriber do not take all the places."""
STEP_S = 60.0
"""What one question may take to compute."""
ANSWER_S = 120.0
"""After which one is given up that has waited, or has been computed between the forwards of sessions."""
KNOWN_S = 600.0
"""For so long after a question was taken its client may send long ones."""
MOST_KNOWN = 64
RETRY_S = 0.5
MOST_RETRY_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingService:
    """What a node lets clients train."""

    digest: Digest
    span: Span
    engine: Engine
    longest: int
    """Tokens of one sequence."""
    off: str = ""
    """Why it trains nothing."""


def check_train(message: Train, service: TrainingService) -> None:
    """Refuse a question that this node does not answer.

    Raises:
        NotAllowed: it does not train, or serves other blocks.
        DigestMismatch: it serves another model.
        PromptTooLong: a sequence, or the answer, is too long.
    """
    if service.off:
        raise NotAllowed(f"this node does not train: {service.off}")
    if message.digest != service.digest:
        raise DigestMismatch(f"this node serves {service.digest[:23]}…, not {message.digest[:23]}…")
    if message.start < service.span.start or message.end > service.span.end:
        raise NotAllowed(
            f"this node serves blocks {service.span}, {message.start}:{message.end} is not inside of them"
        )
    if message.width != service.engine.width:
        raise NotAllowed(f"hidden states {message.width} wide, not {service.engine.width}")
    if max(message.lengths) > service.longest:
        raise PromptTooLong(
            f"a sequence of {max(message.lengths)} tokens, and this node trains up to {service.longest}"
        )
    if message.answer_size > MAX_PAYLOAD:
        raise PromptTooLong("the answer would be longer than a message may be: send fewer tokens at a time")


class TrainingDesk:
    """Handles ``Train``.

    Args:
        service: what is served now.
        spawn: runs what takes long in a task of its own.
    """

    def __init__(
        self,
        service: Callable[[], TrainingService],
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._service = service
        self._spawn = spawn
        self._waiting: Counter[PeerId] = Counter()
        self._networks: Counter[str] = Counter()
        self._channels: Counter[Channel] = Counter()
        self._known: OrderedDict[PeerId, float] = OrderedDict()
        self._turn = trio.Lock()
        self._took_s = RETRY_S  # by the last question

    def register(self, handlers: Handlers) -> None:
        """Have the messages given here."""
        handlers.register(Train, self._take)

    async def _take(self, channel: Channel, message: Train, payload: bytes) -> None:
        try:
            service = self._service()
            check_train(message, service)
            self._check_room(channel)
        except ShoalError as error:
            _refuse(channel, message, error)
            return
        self._waiting[channel.peer] += 1
        self._networks[network_of(channel.host)] += 1
        self._channels[channel] += 1
        self._know(channel.peer)
        self._spawn(partial(self._answer, channel, message, payload, service))

    def knows(self, peer: PeerId) -> bool:
        """Whether a question of this peer was taken lately: only then may it send a long one."""
        return trio.current_time() < self._known.get(peer, -math.inf)

    def holds(self, channel: Channel) -> bool:
        """Whether an answer is to go over this channel."""
        return channel in self._channels

    def _know(self, peer: PeerId) -> None:
        self._known[peer] = trio.current_time() + KNOWN_S
        self._known.move_to_end(peer)
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def _check_room(self, channel: Channel) -> None:
        """Raises Busy: too many questions wait, of all, of this peer or of its network; says for how long."""
        waiting, host = self._waiting.total(), channel.host
        if (
            waiting >= MOST_WAITING
            or self._waiting[channel.peer] >= MOST_OF_PEER
            or (host and self._networks[network_of(host)] >= MOST_OF_NETWORK)
        ):
            retry_after_s = min(max(RETRY_S, self._took_s), MOST_RETRY_S)
            raise Busy(f"{waiting} questions of tuning wait here now", retry_after_s=retry_after_s)

    async def _answer(
        self, channel: Channel, message: Train, payload: bytes, service: TrainingService
    ) -> None:
        try:
            with trio.fail_after(ANSWER_S):
                async with self._turn:  # of one question at a time are numbers in memory that it came to
                    if channel.closed:
                        return  # nobody waits for it any more
                    began = time.monotonic()
                    answer = await service.engine.train(message, payload, STEP_S)
                    self._took_s = time.monotonic() - began
            with suppress(ChannelClosed):  # the client is gone, or does not read
                await channel.send(Trained(message.number, len(answer), round(self._took_s * 1e6)), answer)
        except trio.TooSlowError:
            late = DeadlineExceeded("sessions or others who train have taken this node's time")
            _refuse(channel, message, late)
        except ShoalError as error:
            _refuse(channel, message, error)
        except Exception:
            # A defect of ours, or a shortage of the machine's, ends this question and never the node.
            log.exception("a training step failed")
            _refuse(channel, message, StepFailed("the training step failed; the node's log says more"))
        finally:
            self._forget(channel)

    def _forget(self, channel: Channel) -> None:
        network = network_of(channel.host)
        self._waiting[channel.peer] -= 1
        self._networks[network] -= 1
        self._channels[channel] -= 1
        # Nothing is kept of who has none: a counter keeps its zeros.
        self._waiting, self._networks, self._channels = +self._waiting, +self._networks, +self._channels


def _refuse(channel: Channel, message: Train, error: ShoalError) -> None:
    retry_after_s = error.retry_after_s if isinstance(error, Busy) else 1.0
    with suppress(ChannelClosed):
        channel.reply(NotTrained(message.number, error.code, shorten(error.message), retry_after_s))
