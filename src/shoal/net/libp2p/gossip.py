"""Gossip: py-libp2p's gossipsub, for messages of peers that nobody trusts.

https://github.com/libp2p/specs/blob/master/pubsub/gossipsub/gossipsub-v1.1.md. Messages are signed by their
authors and validated before they are forwarded. A message published before a new neighbour has said what it
subscribes to is not lost: the router sends it the messages of the last heartbeats.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.abc import IHost
from libp2p.exceptions import BaseLibp2pError, ValidationError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb.rpc_pb2 import Message
from libp2p.pubsub.pubsub import Pubsub

from shoal.errors import LocalProtocolError
from shoal.keyed_locks import KeyedLocks
from shoal.net.fair_rate import FairRate
from shoal.net.network import Validator
from shoal.types import PeerId

WAITING_LIMIT = 1024
"""Messages of one topic that nobody has taken yet; the oldest make room for the newest."""
MESSAGE_LIMIT = 64 << 10
"""Bytes of one message."""
RPC_LIMIT = 1 << 20
"""Bytes of what a neighbour sends at once, several messages and its control parts."""
SUBSCRIPTIONS_LIMIT = 16
HEARTBEAT_S = 1
MESSAGES_PER_S = 1000
CHECKED_PER_S = 100
"""New messages a second whose signatures are checked, of all neighbours together: half a millisecond each.
A swarm of any size says some two a second (:mod:`shoal.swarm.gossip_rate`)."""
CHECKED_AT_ONCE = 1024
"""After a rest: what a newcomer is sent, or what many say when something has happened."""

log = logging.getLogger(__name__)


class Mailbox:
    """Messages of one topic, newest kept."""

    def __init__(self, validate: Validator) -> None:
        self.validate = validate
        self._messages: deque[tuple[PeerId, bytes]] = deque(maxlen=WAITING_LIMIT)
        self._filled = trio.Event()

    def put(self, author: PeerId, data: bytes) -> None:
        self._messages.append((author, data))
        self._filled.set()

    async def messages(self) -> AsyncIterator[tuple[PeerId, bytes]]:
        while True:
            await self._filled.wait()
            while self._messages:
                yield self._messages.popleft()
            # No await since the last look: what is put now finds the new event.
            self._filled = trio.Event()


class Router(GossipSub):
    """Chooses who is sent what; its heartbeat goes on whatever one round of it met."""

    async def heartbeat(self) -> None:
        while True:
            try:
                await super().heartbeat()
            except Exception as error:  # noqa: BLE001  e.g. a neighbour that left while the loop went over them
                log.debug("a heartbeat failed: %r", error)
                await trio.sleep(HEARTBEAT_S)


class Gossip(Pubsub):
    """The gossip of one host. Run it, and ``router``, as services."""

    def __init__(self, host: IHost) -> None:
        # A mesh of 6 (4 to 12) as in the specification. The library's guards by address range would keep the
        # peers of one home out of each other's mesh, and its adaptive parameters are of no specification.
        router = Router(
            [PROTOCOL_ID_V11, PROTOCOL_ID],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=HEARTBEAT_S,
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
            max_messages_per_topic_per_second=MESSAGES_PER_S,
        )
        self.gossiper = router
        super().__init__(
            host,
            router,
            strict_signing=True,
            max_subscriptions_per_rpc=SUBSCRIPTIONS_LIMIT,
            max_subscriptions_per_peer=SUBSCRIPTIONS_LIMIT,
            max_inbound_rpc_size=RPC_LIMIT,
        )
        # Messages are known by author and number: numbers must go on rising when a node starts again.
        self.counter = time.time_ns()
        self._boxes: dict[str, Mailbox] = {}
        self._greeting = KeyedLocks[ID]()
        self._checked = FairRate(CHECKED_PER_S, CHECKED_AT_ONCE)

    @asynccontextmanager
    async def listen(
        self, topic: str, validate: Validator
    ) -> AsyncGenerator[AsyncIterator[tuple[PeerId, bytes]]]:
        """Others' messages on ``topic`` while the block runs.

        Raises:
            LocalProtocolError: we listen to this topic already.
        """
        if topic in self._boxes:
            raise LocalProtocolError(f"two listeners on {topic}")
        box = self._boxes[topic] = Mailbox(validate)
        try:
            await self.subscribe(topic)
            yield box.messages()
        finally:
            # First of all: while neighbours are told, nobody reads what still comes.
            del self._boxes[topic]
            with trio.move_on_after(1.0, shield=True):
                try:
                    await self.unsubscribe(topic)
                except (BaseLibp2pError, trio.ClosedResourceError, trio.BrokenResourceError) as error:
                    log.debug("a neighbour was not told that we leave %s: %r", topic, error)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        # Two connections to one peer at once would make two senders, of which the first never ends.
        async with self._greeting.held(peer_id):
            await super()._handle_new_peer(peer_id)

    async def push_msg(self, msg_forwarder: ID, msg: Message) -> None:
        """As the base class, but within bounds. A message that it chokes on is dropped, and ends nothing."""
        try:
            if len(msg.data) <= MESSAGE_LIMIT and self._is_worth_a_check(msg_forwarder, msg):
                await super().push_msg(msg_forwarder, msg)
        except Exception as error:
            if msg_forwarder == self.my_id:
                raise
            log.debug("a message of %s was dropped: %r", msg_forwarder, error)

    def _is_worth_a_check(self, msg_forwarder: ID, msg: Message) -> bool:
        """Whether a message is our own, or new and its neighbour within bounds. Signatures cost the most."""
        if msg_forwarder == self.my_id:
            return True
        return not self._is_msg_seen(msg) and self._checked.take(
            PeerId(str(msg_forwarder)), trio.current_time()
        )

    async def validate_msg(self, msg_forwarder: ID, msg: Message) -> None:
        """Our validators; the library's remember a verdict by a number that the author chooses."""
        for topic in msg.topicIDs:
            box = self._boxes.get(topic)
            if box is not None and msg_forwarder != self.my_id and not box.validate(_author(msg), msg.data):
                raise ValidationError(f"refused on {topic}")

    def notify_subscriptions(self, publish_message: Message) -> None:
        """Put a message that passed into the mailboxes of its topics, unless it is our own."""
        author = _author(publish_message)
        if author == str(self.my_id):
            return
        for topic in publish_message.topicIDs:
            if topic in self._boxes:
                self._boxes[topic].put(author, publish_message.data)


def _author(message: Any) -> PeerId:
    return PeerId(str(ID(message.from_id)))
