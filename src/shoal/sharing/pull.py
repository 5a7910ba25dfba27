"""A pull: some items of a model, from all the peers that have them, into a folder.

What to ask of whom :mod:`.pull_plan` says; here it is asked, checked and written. New peers are looked for as
long as it lasts, and where nobody is left it waits a while for one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from shoal.errors import Busy, DeadlineExceeded, NoCoverage, RemoteProtocolError, ShoalError
from shoal.models.checkpoint.manifest import MAX_MANIFEST, Manifest, digest_of, read_manifest
from shoal.models.store.disk import check_free, told_if_full
from shoal.progress import Progress
from shoal.sharing.peer_fetcher import PieceSource
from shoal.sharing.pull_plan import FIRST_REST_S, HASHES, PieceAsk, PullPlan
from shoal.sharing.pulled_folder import PulledFolder
from shoal.tasks import one_error
from shoal.types import Digest, PeerAddress, PeerId
from shoal.wire.fetching import MAX_PIECE

PIECE_WITHIN_S = 20.0
"""A mebibyte takes so long at 400 kbit/s."""
OFFER_WITHIN_S = 10.0
LOOK_EVERY_S = 2.0
NOBODY_FOR_S = 30.0
"""How long a pull waits where nobody has what it lacks."""
STALLED_S = 120.0
"""How long it waits for those who say that they have what it lacks, and send nothing."""
MANIFEST_WITHIN_S = 120.0
SLOW_MANIFEST_S = 10.0
"""After which a peer that has sent less of a manifest than the others gives its place to one who waits."""
LONG_MANIFESTS = 2
"""Manifests of more than one piece that come at a time: until its end, nobody knows whether one is right."""
LONG_WITHIN_S = 40.0
PEERS = 16
"""Peers that are asked at a time."""
REPLACED_FOR_S = 30.0
"""How long a peer is not asked again whose place another one got."""
WRITERS = 4

FindPeers = Callable[[], Awaitable[Sequence[PeerAddress]]]
"""Who may have the model: as many as are known, in the order in which they are to be asked."""
FitsManifest = Callable[[PeerId, bytes], bool]
"""Whether what a peer has sent is a manifest of what it was asked for."""


@dataclass
class PullReport:
    """What a pull has brought, and from whom; it changes while the pull runs."""

    total: int = 0
    """Bytes that were missing."""
    done: int = 0
    """Of them, those that have come and were right."""
    received: int = 0
    """Bytes of all pieces that came, also of those that another peer had sent before, or that were wrong."""
    took_s: float = 0.0
    """How long pulls have run that had something to bring."""
    by_peer: dict[PeerId, int] = field(default_factory=dict[PeerId, int])
    """Bytes that were right, by who sent them."""
    wrong: set[PeerId] = field(default_factory=set[PeerId])
    """Peers that sent something else than they were asked for."""

    @property
    def bytes_s(self) -> float:
        """Bytes a second, on average."""
        return self.done / self.took_s if self.took_s else 0.0

    def shown(self) -> dict[str, Any]:
        """What was brought, as ``--json`` shows it."""
        return {
            "bytes": self.done,
            "received": self.received,
            "bytes_s": round(self.bytes_s),
            "by_peer": dict(self.by_peer),
            "wrong": sorted(self.wrong),
        }


class Pull:
    """One model's pull."""

    def __init__(
        self,
        source: PieceSource,
        find: FindPeers,
        *,
        blame: Callable[[PeerId], None],
        progress: Progress,
        name: str,
        report: PullReport | None = None,
    ) -> None:
        """
        Args:
            report: one to add to, of pulls before.
            blame: told of each peer that sends what is not the piece.
            name: the model's, for the progress and for errors.
        """
        self._source = source
        self._find = find
        self._blame = blame
        self._progress = progress
        self._name = name
        self._addresses: dict[PeerId, PeerAddress] = {}
        self._refused: dict[PeerId, float] = {}
        """Peers that are not asked, and until when."""
        self._long_manifests = trio.CapacityLimiter(LONG_MANIFESTS)
        self._writers = trio.CapacityLimiter(WRITERS)
        self._news = trio.Event()
        self._advanced = trio.current_time()
        self._unwritten: OSError | None = None
        self.report = report or PullReport()

    async def manifest(self, digest: Digest) -> Manifest:
        """The manifest of a language model. Raises as :meth:`manifest_bytes`."""
        return read_manifest(await self.manifest_bytes(digest))

    async def manifest_bytes(self, digest: Digest, fits: FitsManifest | None = None) -> bytes:
        """The manifest of a model or graph, from the first peer that sends the one of that digest.

        Peers are asked side by side, the next one a little later: one that is slow holds nobody up.

        Args:
            fits: whether what a peer has sent is a manifest of it, where that is no hash of the manifest.

        Raises:
            NoCoverage: nobody has it.
            BadWeights: it is not well-formed, although the digest is its.
        """
        found: list[bytes] = []
        asked: dict[PeerId, _ManifestAsk] = {}
        times = Counter[PeerId]()

        async def ask(address: PeerAddress, of: _ManifestAsk) -> None:
            raw = None
            with of.scope:
                raw = await self._whole_manifest(address, of)
            if of.scope.cancelled_caught:
                self._rest(address.peer, DeadlineExceeded("others were waiting"))
            right = raw is not None and (fits(address.peer, raw) if fits else digest_of(raw) == digest)
            if raw is not None and right:
                found.append(raw)
                nursery.cancel_scope.cancel()
            elif raw is not None:
                self._note_wrong(address.peer)
            del asked[address.peer]
            self._news.set()

        with one_error(), trio.move_on_after(MANIFEST_WITHIN_S):
            async with trio.open_nursery() as nursery:
                until = trio.current_time() + NOBODY_FOR_S
                while asked or trio.current_time() < until:
                    new = [a for a in await self._find() if a.peer not in asked and self._may_ask(a.peer)]
                    if new and len(asked) < PEERS:
                        # Those first that were asked least often: each has its turn.
                        address = min(new, key=lambda address: times[address.peer])
                        times[address.peer] += 1
                        asked[address.peer] = _ManifestAsk(trio.current_time())
                        nursery.start_soon(ask, address, asked[address.peer])
                    elif new:
                        _end_slowest(asked.values())
                    self._news = trio.Event()
                    with trio.move_on_after(LOOK_EVERY_S):
                        await self._news.wait()
        if found:
            return found[0]
        raise self._nobody("nobody who can be reached gives its manifest")

    async def items(self, folder: PulledFolder, wanted: Iterable[int]) -> None:
        """Bring the items that are missing, and what shares a file with them.

        Raises:
            NoCoverage: nobody has them any more. What has come is kept, and the next pull goes on with it.
            OutOfResources: the disk is full. The same.
        """
        wanted = folder.whole(wanted)
        missing = await trio.to_thread.run_sync(folder.missing, wanted)
        items = folder.manifest.items
        total = sum(items[number].chunk_size(index) for number, chunks in missing.items() for index in chunks)
        self.report.total += total
        if total:
            check_free(folder.folder, self._name, total)
        plan = PullPlan(items, missing)
        for number in missing:
            if folder.has_hashes(number):
                plan.listed(number)
        with told_if_full(folder.folder, self._name, lambda: total), one_error():
            began = trio.current_time()
            try:
                if not plan.done:
                    await self._bring(plan, folder)
                await trio.to_thread.run_sync(folder.finish_empty, wanted)
            finally:
                self.report.took_s += trio.current_time() - began
                folder.close()

    async def _bring(self, plan: PullPlan, folder: PulledFolder) -> None:
        self._unwritten = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_for_peers, plan, folder.manifest, nursery)
            while not plan.done and self._unwritten is None:
                now = trio.current_time()
                self._news = trio.Event()
                for ask in plan.next_asks(now):
                    nursery.start_soon(self._ask, plan, folder, ask)
                with trio.move_on_at(plan.wake_at(now)):
                    await self._news.wait()
            nursery.cancel_scope.cancel()
        if self._unwritten is not None:
            raise self._unwritten

    async def _look_for_peers(self, plan: PullPlan, manifest: Manifest, nursery: trio.Nursery) -> None:
        """Ask peers what they have, those that are found later too; ends the pull when nobody is left."""
        asked: set[PeerId] = set()
        self._advanced = trio.current_time()
        while True:
            for address in await self._find():
                known = asked | set(plan.peers)
                if address.peer in known or not self._may_ask(address.peer):
                    continue
                if len(known) < PEERS or self._make_room(plan):
                    asked.add(address.peer)
                    nursery.start_soon(self._ask_offer, plan, manifest, address, asked)
            await trio.sleep(LOOK_EVERY_S)
            idle_s = trio.current_time() - self._advanced
            if idle_s > NOBODY_FOR_S and (unheld := len(plan.unheld())):
                raise self._nobody(f"nobody who can be reached has {unheld} of its tensors")
            if idle_s > STALLED_S:
                raise self._nobody(f"nothing has come for {STALLED_S:.0f} s")

    def _make_room(self, plan: PullPlan) -> bool:
        """Take the place of a peer that gives nothing, for one who waits; whether there was one."""
        spare = plan.spare_peer(trio.current_time())
        if spare is None:
            return False
        peer, rested_at = spare
        plan.drop_peer(peer)
        self._refused[peer] = max(rested_at, trio.current_time() + REPLACED_FOR_S)
        self._news.set()
        return True

    async def _ask_offer(
        self, plan: PullPlan, manifest: Manifest, address: PeerAddress, asked: set[PeerId]
    ) -> None:
        peer = address.peer
        try:
            bits = await self._source.fetch(address, "offer", deadline_s=OFFER_WITHIN_S)
        except ShoalError as error:
            self._rest(peer, error)
            return
        finally:
            asked.discard(peer)
        if len(bits) != -(-len(manifest.items) // 8):
            self._note_wrong(peer)
            return
        self._addresses[peer] = address
        plan.add_peer(peer, partial(_has, bits))
        self._news.set()

    async def _ask(self, plan: PullPlan, folder: PulledFolder, ask: PieceAsk) -> None:
        """Ask for a piece, check what comes, and write it."""
        peer, piece = ask
        try:
            data = await self._fetch_piece(folder, ask)
        except ShoalError as error:
            rest_s = max(FIRST_REST_S, error.retry_after_s) if isinstance(error, Busy) else FIRST_REST_S
            if plan.failed(peer, piece, trio.current_time(), rest_s):
                self._rest(peer, error)
        else:
            plan.came(peer, piece, trio.current_time())
            self.report.received += len(data)
            try:
                await self._check(plan, folder, ask, data)
            except OSError as error:  # pieces side by side meet the same full disk: it is told once
                self._unwritten = self._unwritten or error
        self._news.set()

    async def _fetch_piece(self, folder: PulledFolder, ask: PieceAsk) -> bytes:
        address, (item, index) = self._addresses[ask.peer], ask.piece
        if index != HASHES:
            return await self._source.fetch(address, "chunk", item, index, deadline_s=PIECE_WITHIN_S)
        size = 32 * folder.manifest.items[item].chunks
        parts = [
            await self._source.fetch(address, "hashes", item, number, deadline_s=PIECE_WITHIN_S)
            for number in range(-(-size // MAX_PIECE))
        ]
        return b"".join(parts)

    async def _check(self, plan: PullPlan, folder: PulledFolder, ask: PieceAsk, data: bytes) -> None:
        peer, (item, index) = ask
        put = folder.put_hashes if index == HASHES else partial(folder.put_chunk, index=index)
        take = partial(put, item, data=data) if index != HASHES else partial(put, item, data)
        if not await trio.to_thread.run_sync(take, limiter=self._writers):
            plan.wrong(peer, ask.piece)
            self._note_wrong(peer)
        elif plan.checked(ask.piece) and index != HASHES:
            self.report.done += len(data)
            self._advanced = trio.current_time()
            self.report.by_peer[peer] = self.report.by_peer.get(peer, 0) + len(data)
            self._progress(f"fetching {self._name} from peers", self.report.done, self.report.total)

    async def _whole_manifest(self, address: PeerAddress, ask: _ManifestAsk) -> bytes | None:
        """A manifest as a peer sends it; past its first piece, of so many peers at a time."""
        try:
            raw = await self._source.fetch(address, "manifest", 0, 0, deadline_s=PIECE_WITHIN_S)
            ask.came = len(raw)
            if len(raw) < MAX_PIECE:
                return raw
            async with self._long_manifests:
                with trio.fail_after(LONG_WITHIN_S):
                    for index in range(1, MAX_MANIFEST // MAX_PIECE):
                        piece = await self._source.fetch(
                            address, "manifest", 0, index, deadline_s=PIECE_WITHIN_S
                        )
                        raw += piece
                        ask.came = len(raw)
                        if len(piece) < MAX_PIECE:
                            return raw
        except (ShoalError, trio.TooSlowError) as error:
            late = DeadlineExceeded(f"{address.peer} did not send its manifest in time")
            self._rest(address.peer, error if isinstance(error, ShoalError) else late)
            return None
        self._note_wrong(address.peer)
        return None

    def _may_ask(self, peer: PeerId) -> bool:
        return self._refused.get(peer, 0.0) <= trio.current_time()

    def _rest(self, peer: PeerId, error: ShoalError) -> None:
        """Leave a peer alone for a while that does not give us what we want."""
        if isinstance(error, RemoteProtocolError):
            self._note_wrong(peer)
            return
        rest_s = error.retry_after_s if isinstance(error, Busy) else LOOK_EVERY_S
        self._refused[peer] = trio.current_time() + max(LOOK_EVERY_S, rest_s)

    def _note_wrong(self, peer: PeerId) -> None:
        self._refused[peer] = math.inf
        if peer not in self.report.wrong:
            self.report.wrong.add(peer)
            self._blame(peer)

    def _nobody(self, what: str) -> NoCoverage:
        return NoCoverage(
            f"{self._name} cannot be fetched from peers: {what}",
            check="check that a peer that has it runs and shares it (shoal models share); "
            "what has come is kept",
            next_command="shoal status",
        )


@dataclass(eq=False)
class _ManifestAsk:
    """A peer that is asked for a manifest."""

    began: float
    came: int = 0
    """Bytes of it."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


def _end_slowest(asks: Iterable[_ManifestAsk]) -> None:
    slow = [ask for ask in asks if trio.current_time() - ask.began > SLOW_MANIFEST_S]
    if slow:
        min(slow, key=lambda ask: ask.came).scope.cancel()


def _has(bits: bytes, item: int) -> bool:
    return bool(bits[item // 8] >> item % 8 & 1)
