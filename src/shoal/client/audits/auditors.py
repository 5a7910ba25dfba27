"""Who computes a hop's blocks again: this machine, where it has the weights, or another peer.

A peer is asked as any hop is: a session over the span, whose prompt are the rows that the hop was given. By
an identity that is used for this alone it cannot tell from whom it has them, nor what they are of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import trio

from shoal.client.receipts.replay import ROWS, load_blocks, through
from shoal.client.ring.hop import RouteHop
from shoal.client.ring.results import Returned
from shoal.client.ring.rings import Rings
from shoal.config import Settings
from shoal.errors import DeadlineExceeded, NotAllowed, OutdatedPeer, RemoteProtocolError, ShoalError
from shoal.executor.arrays import join
from shoal.executor.codecs import decode, encode, join_rows, split_rows
from shoal.executor.device.device import cpu, memory_budget
from shoal.executor.runner import Runner
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.digest import changed_items
from shoal.models.checkpoint.manifest import read_manifest
from shoal.models.checkpoint.parts import MANIFEST
from shoal.models.checkpoint.sizes import block_bytes
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.net.addresses import host_and_port
from shoal.net.network import Network
from shoal.routing.reputation import REFUSAL, SHARED_FAULT
from shoal.sharing.peer_weights import has_span
from shoal.swarm.member import Member
from shoal.tasks import one_error
from shoal.trust.independence import OWN, Whereabouts, together, whereabouts
from shoal.types import Codec, ModelShape, Numerics, PeerAddress, PeerId, Span

log = logging.getLogger(__name__)

OPEN_WITHIN_S = 5.0
ENOUGH_S = 4.0
"""Who had less time than this is not blamed for what it did not do in it."""
IN_FLIGHT = 4
"""Steps of an audit that are on their way at once."""
HERE = "this machine"

OtherIdentity = Callable[[], AbstractAsyncContextManager[Network]]
"""A place in the same swarm under an identity that nobody knows, for as long as the block."""


@dataclass(frozen=True, slots=True)
class AuditJob:
    """What is to be computed again."""

    shape: ModelShape
    numerics: Numerics
    codec: Codec
    span: Span
    rows: Sequence[bytes]
    """What the hop was given, each row by itself."""

    def pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """Where each piece begins, its rows, and these as they travel."""
        for first in range(0, len(self.rows), ROWS):
            part = self.rows[first : first + ROWS]
            yield first, len(part), join_rows(part, self.codec, self.shape.hidden_size)


class Auditor(Protocol):
    """Computes a hop's blocks again."""

    @property
    def name(self) -> str:
        """A peer's id, or this machine."""
        ...

    @property
    def at(self) -> Whereabouts:
        """Where it is, as far as is known by now."""
        ...

    async def compute(self, job: AuditJob) -> list[bytes]:
        """What comes out, each row by itself.

        Raises:
            ShoalError: nothing does.
        """
        ...


class OwnAuditor:
    """This machine. Blocks are in memory for an audit and no longer: packed, they are soon read again."""

    def __init__(self, settings: Settings, store: ModelStore) -> None:
        self._settings = settings
        self._store = store
        self._limiter = trio.CapacityLimiter(1)  # a runner is for one thread at a time

    def __call__(self, *, checked: bool = False) -> Auditor:
        """As an auditor.

        Args:
            checked: read the blocks anew, once every weight has been compared with the model's manifest.
        """
        return _Here(self, checked)

    async def can(self, job: AuditJob) -> bool:
        """Whether the blocks are here, and there is memory for them. What cannot be read is not here."""
        try:
            return await trio.to_thread.run_sync(self._can, job)
        except ShoalError as error:
            log.warning("audit: %s cannot compute: %s", HERE, error.message)
            return False

    async def compute(self, job: AuditJob, *, checked: bool) -> list[bytes]:
        """As :meth:`Auditor.compute`. Where it is cancelled its thread goes on, and the next waits."""
        compute = partial(self._compute, job, checked)
        return await trio.to_thread.run_sync(compute, limiter=self._limiter, abandon_on_cancel=True)

    def _can(self, job: AuditJob) -> bool:
        model = self._store.find(job.shape.digest)
        if model is None or not has_span(model, job.span):
            return False
        needed = sum(block_bytes(model, job.numerics.format)[job.span.start : job.span.end])
        return needed <= memory_budget(self._settings, cpu())

    def _compute(self, job: AuditJob, checked: bool) -> list[bytes]:
        runner = self._runner(job, checked)
        width, found = job.shape.hidden_size, list[bytes]()
        rows = [decode(payload, job.codec, count, width) for _, count, payload in job.pieces()]
        out = through(runner, job.span, join(rows))
        for first in range(0, len(out), ROWS):
            part = out[first : first + ROWS]
            found += split_rows(encode(part, job.codec), job.codec, len(part), width)
        return found

    def _runner(self, job: AuditJob, checked: bool) -> Runner:
        model = self._store.find(job.shape.digest)
        if model is None:
            raise NotAllowed(f"{job.shape.name} is not on this machine")
        if checked:
            self.check_weights(model)
        return load_blocks(model, job.span, job.numerics, self._settings)

    def check_weights(self, model: LocalModel) -> None:
        """Compare every weight of a model on this machine with its manifest. From any thread.

        Raises:
            NotAllowed: one of them differs, so what this machine finds shows nothing.
        """
        try:
            manifest = read_manifest((self._store.shared_files(model) / MANIFEST).read_bytes())
        except OSError as error:
            raise NotAllowed(f"the manifest of {model.name} cannot be read: {error.strerror}") from error
        if changed := changed_items(open_checkpoint(model.path), manifest):
            raise NotAllowed(
                f"{changed[0]} of {model.name} on this machine is not what it was: audits here mean nothing",
                check="remove the model and fetch it again",
                next_command=f"shoal verify ANSWER.json, or shoal models rm {model.name}",
            )


@dataclass(frozen=True, slots=True)
class _Here:
    auditor: OwnAuditor
    checked: bool

    @property
    def name(self) -> str:
        return f"{HERE}, its weights checked" if self.checked else HERE

    @property
    def at(self) -> Whereabouts:
        return OWN

    async def compute(self, job: AuditJob) -> list[bytes]:
        return await self.auditor.compute(job, checked=self.checked)


@dataclass(frozen=True, slots=True)
class PeerAuditor:
    """Another peer, or several that have the blocks between them."""

    route: Sequence[RouteHop]
    member: Member
    settings: Settings
    identity: OtherIdentity
    _seen: dict[PeerId, str | None] = field(default_factory=dict[PeerId, "str | None"])

    @property
    def name(self) -> str:
        return " and ".join(hop.address.peer for hop in self.route)

    @property
    def at(self) -> Whereabouts:
        addresses = (hop.address for hop in self.route)
        return whereabouts_of(addresses, self._seen.get, self.member.directory.operator_of)

    async def compute(self, job: AuditJob) -> list[bytes]:
        """As :meth:`Auditor.compute`."""
        found = list[bytes]()
        with one_error():
            async with self.identity() as network, trio.open_nursery() as nursery:
                rings = Rings(network, self.member, self.settings)
                await nursery.start(rings.run)
                found = await self._ask(rings, job)
                nursery.cancel_scope.cancel()
        return found

    async def _ask(self, rings: Rings, job: AuditJob) -> list[bytes]:
        tokens, found = len(job.rows), list[bytes]()
        ring = await rings.open_over(self.route, job.shape, job.numerics, tokens, OPEN_WITHIN_S, job.codec)
        self._seen.update({hop.address.peer: rings.seen_at(hop.address.peer) for hop in self.route})
        try:
            waiting = 0  # sent and not received yet: of some of them the result may be here
            for _, count, payload in job.pieces():
                if waiting == IN_FLIGHT:
                    found += _rows(await ring.receive(), job)
                    waiting -= 1
                await ring.send(payload, job.codec, count, count)
                waiting += 1
            for _ in range(waiting):
                found += _rows(await ring.receive(), job)
            return found
        finally:
            await rings.close(ring)


def _rows(returned: Returned, job: AuditJob) -> list[bytes]:
    return split_rows(returned.payload, returned.codec, returned.rows, job.shape.hidden_size)


async def computed(auditor: Auditor, job: AuditJob, until: float) -> list[bytes] | ShoalError:
    """What an auditor gives until then, or why it gives nothing."""
    try:
        with trio.fail_at(until):
            return await auditor.compute(job)
    except trio.TooSlowError:
        return DeadlineExceeded(f"{auditor.name} has not computed all rows of an audit in time")
    except ShoalError as error:
        return error


def fault_share(error: ShoalError, had_s: float, late: float = REFUSAL) -> float:
    """The share of a fault of who did not do what it was asked for.

    Args:
        had_s: the time that it had.
        late: the share where it let all of that pass.
    """
    if isinstance(error, RemoteProtocolError):
        return SHARED_FAULT  # it did something else instead
    if isinstance(error, OutdatedPeer):
        return 0.0  # it does not know how
    if not isinstance(error, DeadlineExceeded):
        return REFUSAL
    return late if had_s >= ENOUGH_S else 0.0


SeenAt = Callable[[PeerId], str | None]
"""The host that the channel to a peer leads to: empty where it goes over a relay; ``None`` where there is no
channel, or it tells no host."""


OperatorOf = Callable[[PeerId], str]
"""Whose machine a peer is, as it announces; empty where it does not."""


def place_of(rings: Rings, address: PeerAddress) -> Whereabouts:
    """Where a peer is, and whose, as far as a client knows by now."""
    return whereabouts_of([address], rings.seen_at, rings.member.directory.operator_of)


def whereabouts_of(
    addresses: Iterable[PeerAddress],
    seen_at: SeenAt = lambda _: None,
    operator_of: OperatorOf = lambda _: "",
) -> Whereabouts:
    """Where peers are: at the host that they were seen at; else where they say that they can be reached
    without a relay."""
    return together([_whereabouts(one, seen_at(one.peer), operator_of(one.peer)) for one in addresses])


def _whereabouts(address: PeerAddress, seen: str | None, operator: str) -> Whereabouts:
    operators = [operator] if operator else []
    if seen is not None:
        return whereabouts([address.peer], [seen], seen=True, operators=operators)
    found = (host_and_port(text) for text in (*address.libp2p, *address.direct))
    hosts = [at[0] for at in found if at is not None]
    return whereabouts([address.peer], hosts, operators=operators)
