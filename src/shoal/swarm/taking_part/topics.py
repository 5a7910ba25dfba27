"""The topics of models that a member listens to: joined and left as it asks for models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial

import trio

from shoal.net.network import Network
from shoal.types import Digest, PeerId


class ModelTopics:
    """One kind of messages, on a topic for each model. ``run`` must be running.

    Args:
        topic_of: the name of a model's topic.
        valid: judges a message on it, by its author.
        hear: takes messages in, as long as there are some.
    """

    def __init__(
        self,
        network: Network,
        topic_of: Callable[[Digest], str],
        valid: Callable[[Digest, PeerId, bytes], bool],
        hear: Callable[[AsyncIterator[tuple[PeerId, bytes]]], Awaitable[None]],
    ) -> None:
        self._network = network
        self._topic_of = topic_of
        self._valid = valid
        self._hear = hear
        self._wanted: frozenset[Digest] = frozenset()
        self._scopes: dict[Digest, trio.CancelScope] = {}
        self._changed = trio.Event()

    def want(self, digests: Iterable[Digest]) -> None:
        """Listen to the topics of these models, and to no others."""
        wanted = frozenset(digests)
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    async def run(self) -> None:
        """Join and leave, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                for digest in self._scopes.keys() - self._wanted:
                    self._scopes[digest].cancel()
                for digest in self._wanted - self._scopes.keys():
                    scope = self._scopes[digest] = trio.CancelScope()
                    nursery.start_soon(self._listen, digest, scope)
                await self._changed.wait()

    async def _listen(self, digest: Digest, scope: trio.CancelScope) -> None:
        with scope:
            topic, valid = self._topic_of(digest), partial(self._valid, digest)
            async with self._network.subscribe(topic, valid) as messages:
                await self._hear(messages)
        # Only now it may be joined again, if it is wanted again.
        del self._scopes[digest]
        self._changed.set()
