"""Pulls from the peers of one swarm into a folder of models, or of graphs: one of each at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from filelock import FileLock, Timeout

from shoal.config import Settings
from shoal.models.store.disk import told_if_full
from shoal.progress import Progress
from shoal.sharing.peer_fetcher import PeerFetcher
from shoal.sharing.peer_finder import PeerFinder
from shoal.sharing.pull import FindPeers, Pull, PullReport
from shoal.sharing.wrong_peers import WrongPeers
from shoal.swarm.member import Member
from shoal.swarm.membership import PUBLIC
from shoal.tasks import one_error
from shoal.types import Digest

LOCK_EVERY_S = 0.2


class PeerPulls:
    """What pulls of one process have in common: whom they ask and blame, and what they have brought."""

    def __init__(self, member: Member, settings: Settings, root: Path) -> None:
        """
        Args:
            root: the folder of all models, or of all graphs.
        """
        self.member = member
        self.private = settings.swarm != PUBLIC
        self.report = PullReport()
        """Of all that was fetched."""
        self._root = root
        self._wrong = WrongPeers(root)

    @asynccontextmanager
    async def pulling(
        self, digest: Digest, name: str, progress: Progress, find: FindPeers | None = None
    ) -> AsyncGenerator[Pull]:
        """A pull, while no other process of this machine pulls the same model.

        Args:
            find: who may have it; by default whoever has a model.
        """
        fetcher = PeerFetcher(self.member.network, digest)
        pull = Pull(
            fetcher,
            find or PeerFinder(self.member, digest, self._wrong).find,
            blame=self._wrong.note,
            progress=progress,
            name=name,
            report=self.report,
        )
        with told_if_full(self._root, name), one_error():
            async with self._locked(digest, name, progress), trio.open_nursery() as nursery:
                await nursery.start(fetcher.run)
                try:
                    yield pull
                finally:
                    nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _locked(self, digest: Digest, name: str, progress: Progress) -> AsyncGenerator[None]:
        locks = self._root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{digest.removeprefix('sha256:')}.pull.lock", thread_local=False)
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except Timeout:
                progress(f"Waiting for another process of this machine that fetches {name}", 0, 0)
                await trio.sleep(LOCK_EVERY_S)
        try:
            yield
        finally:
            lock.release()
