"""What a hop asks of whoever is paid for its work, and what admission does. Nothing here needs a chain."""

from __future__ import annotations

from typing import Protocol

import trio

from shoal.net.channel import Channel
from shoal.node.handlers import Handlers
from shoal.swarm.announcement import AskedPrice
from shoal.wire.messages import Open


class SessionPayment(Protocol):
    """How one session is paid for. Reserved before a step runs, charged when it has."""

    @property
    def news(self) -> trio.Event:
        """Set when more may be paid for than before; then there is another."""
        ...

    def covers_next(self) -> bool:
        """Whether a step of one token would be paid for. From any thread."""
        ...

    def reserve(self, tokens: int) -> bool:
        """Count a step of ``tokens`` as under way, if it will be paid for."""
        ...

    def settle(self, tokens: int, *, done: bool) -> None:
        """A step that was reserved has run, or came to nothing. From any thread."""
        ...

    def charge(self, tokens: int) -> None:
        """A step has run that was not reserved. From any thread."""
        ...

    def check(self, tokens: int) -> None:
        """Raises PaymentRequired: names what is owed, and why ``tokens`` more are not served on credit."""
        ...

    def wait_told(self) -> None:
        """Tell the client that its session waits."""
        ...


class PaymentDesk(Protocol):
    """What asks for payment at a node."""

    def asked(self, blocks: int) -> AskedPrice:
        """What the node announces for a span of ``blocks``."""
        ...

    def register(self, handlers: Handlers) -> None:
        """Have its messages given to it."""
        ...

    async def admit(self, channel: Channel, message: Open) -> SessionPayment:
        """How a session will be paid for.

        Raises:
            PaymentRequired, VoucherRefused: it will not.
            ShoalError: it cannot be told, as the chain or the disk does not answer.
        """
        ...

    def ended(self, session: bytes) -> None:
        """A session is over."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what waits for the disk and the chain, until cancelled."""
        ...
